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
events_processed = Counter(
    "pricing_events_processed_total",
    "Events taken off the stream: applied, repeated (applied before), refused (dead letter).",
    ["status"],
)
events_dispatched = Counter(
    "pricing_events_dispatched_total", "Stream entries that a listener gave to a task.", ["how"]
)
sheets_stored = Counter(
    "pricing_sheets_stored_total", "New versions of price sheets, by cause: event, recalculation, boundary.", ["cause"]
)
task_duration = Histogram(
    "pricing_task_duration_seconds",
    "Run time of background tasks, by how they ended: succeeded, retried, failed.",
    ["task", "outcome"],
    buckets=_LATENCY_S,
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
