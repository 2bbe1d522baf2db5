"""Every metric of the service, with its unit, its labels and what it means.

Labels are bounded: never an id, a key or a raw path. Several processes write one folder
(`PROMETHEUS_MULTIPROC_DIR`), and a scrape adds them up.
"""

import os
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

_LATENCY_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1, 2.5, 10)

http_request_duration = Histogram(
    "pricing_http_request_duration_seconds",
    "Time from a request's arrival to its answer's last byte.",
    ["method", "route", "status"],
    buckets=_LATENCY_S,
)
access_records_dropped = Counter(
    "pricing_access_records_dropped_total", "Access records that the log on stderr did not take in time."
)
quotes = Counter(
    "pricing_quotes_total",
    "Quotes answered, by where their sheet came from: cache, database, stale, unknown.",
    ["source"],
)
near_cache_entries = Gauge(
    "pricing_near_cache_entries", "Price sheets at hand in all API processes.", multiprocess_mode="livesum"
)
near_cache_bypassed = Gauge(
    "pricing_near_cache_bypassed",
    "API processes that do not hear the invalidation feed, and bypass their near cache.",
    multiprocess_mode="livesum",
)
near_cache_resets = Counter(
    "pricing_near_cache_resets_total", "Times that an API process distrusted all it had at hand, or was told to clear."
)
events_published = Counter(
    "pricing_events_published_total",
    "Events accepted into the stream, by type and by how they came: api, rules, channel.",
    ["type", "via"],
)
events_refused = Counter(
    "pricing_events_refused_total", "Events not accepted because the backlog was full; their senders come again."
)
dead_letters_handled = Counter(
    "pricing_dead_letters_handled_total", "Dead letters that were replayed or discarded over the API.", ["how"]
)
events_processed = Counter(
    "pricing_events_processed_total",
    "Events taken from inboxes: applied, repeated (applied before), failed (to be tried again), dead (letters).",
    ["status"],
)
events_received = Counter(
    "pricing_events_received_total", "Stream entries that a listener put into inboxes: read, reclaimed.", ["how"]
)
event_backlog = Gauge(
    "pricing_event_backlog",
    "Stream entries that are not applied yet: unread, or pending (in an inbox).",
    ["state"],
    multiprocess_mode="mostrecent",
)
oldest_event_age = Gauge(
    "pricing_oldest_unapplied_event_age_seconds",
    "Age of the oldest event that is not applied yet; 0 where there is none.",
    multiprocess_mode="mostrecent",
)
boundary_overdue = Gauge(
    "pricing_oldest_due_boundary_age_seconds",
    "How long ago a promotion began or ended whose prices are still to be recomputed; 0 where there is none.",
    multiprocess_mode="mostrecent",
)
dead_letters = Gauge("pricing_dead_letters", "Events that were set aside.", multiprocess_mode="mostrecent")
breaker_state = Gauge(
    "pricing_breaker_state",
    "Circuit breakers of stores and of kinds of work: 0 closed, 1 half open, 2 open.",
    ["breaker"],
    multiprocess_mode="mostrecent",
)
sheets_stored = Counter(
    "pricing_sheets_stored_total", "New versions of price sheets, by cause: event, recalculation, boundary.", ["cause"]
)
lock_wait = Histogram(
    "pricing_lock_wait_seconds",
    "From asking for a scope's work to the round that does it, by kind of scope.",
    ["kind"],
    buckets=_LATENCY_S,
)
lock_hold = Histogram(
    "pricing_lock_hold_seconds", "How long a lock was held, by kind of scope.", ["kind"], buckets=_LATENCY_S
)
lock_renewals = Counter("pricing_lock_renewals_total", "Renewals of held locks, by kind of scope.", ["kind"])
lock_lost = Counter("pricing_lock_lost_total", "Locks that were lost while held, by kind of scope.", ["kind"])
lock_left_to_holder = Counter(
    "pricing_lock_left_to_holder_total",
    "Requests that found their lock held, and became another round of its holder, by kind of scope.",
    ["kind"],
)
task_duration = Histogram(
    "pricing_task_duration_seconds",
    "Run time of background tasks, by how they ended: succeeded, retried, failed.",
    ["task", "outcome"],
    buckets=_LATENCY_S,
)

task_retries = Counter(
    "pricing_task_retries_total", "Repeats of background tasks, by the kind of error.", ["task", "reason"]
)


def observe_many(histogram: Histogram, seconds: Sequence[float]) -> None:
    """As one `observe` each, but every bucket is written once. A bound histogram's buckets are not a public
    interface of prometheus-client 0.26; its version is pinned, and a test compares the two ways."""
    counts = Counts(bisect_left(histogram._upper_bounds, value) for value in seconds)
    for bucket, count in counts.items():
        histogram._buckets[bucket].inc(count)
    histogram._sum.inc(sum(seconds))


def exposition() -> tuple[bytes, str]:
    """What a scrape gets, and its content type. Reads every process's file: not for an event loop."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
