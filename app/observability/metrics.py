"""Every metric of the service.

Labels are bounded: never an id, a key or a raw path. Several processes count in one folder (`catalogue.FOLDER`), and a
scrape adds them up (`exposition`). docs/metrics.md is written from here, and the tests hold what is counted against it.
"""

import platform
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from prometheus_client import Histogram

from app.observability.catalogue import CATALOGUE as CATALOGUE
from app.observability.catalogue import Open, Section

LATENCY_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1, 2.5, 10)

EVENT_TYPES = (
    "list_price.changed",
    "cost.changed",
    "competitor_price.changed",
    "demand.changed",
    "stock.changed",
    "promotion.changed",
    "policy.changed",
    "recalculate",
)
TASKS = ("pricing.apply_events", "pricing.recalculate", "pricing.reprice_due", "pricing.write_telemetry")
QUEUES = ("pricing", "pricing.jobs", "pricing.telemetry")
SINKS = ("postgresql", "victoriametrics")
BREAKERS = (
    "postgresql",
    "cache",
    "apply_events",
    "recalculate",
    "reprice_due",
    "telemetry_postgresql",
    "telemetry_victoriametrics",
)
LOCKS = ("products", "catalogue", "task", "boundaries", "telemetry")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")

_processes = Section("Processes")

build = _processes.gauge(
    "pricing_build_info",
    "",
    "livemax",
    "Always 1; its labels say what is running.",
    version=Open("releases"),
    python=Open("releases"),
    revision=Open("releases"),
)
processes = _processes.gauge(
    "pricing_processes",
    "processes",
    "livesum",
    "Processes that live: API workers, listeners, and Celery's children that take events (worker) and recalculations "
    "(jobs).",
    kind=("api", "listener", "worker", "jobs"),
)

_requests = Section("Requests")

http_request_duration = _requests.histogram(
    "pricing_http_request_duration_seconds",
    "seconds",
    LATENCY_S,
    "Time from a request's arrival to its answer's last byte.",
    method=METHODS,
    route=Open("the routes' templates, and `unmatched`"),
    status=Open("HTTP's status codes"),
)
access_records_dropped = _requests.counter(
    "pricing_access_records_dropped_total", "records", "Access records that the log on stderr did not take in time."
)

_callers = Section("Callers")

requests_refused = _callers.counter(
    "pricing_requests_refused_total",
    "requests",
    "Requests refused for who sent them: without a key that is good, without the scope, or too often for the key.",
    reason=("unauthenticated", "forbidden", "rate_limited"),
)
rate_limits_local = _callers.counter(
    "pricing_rate_limits_local_total",
    "draws",
    "Draws from a limited key's bucket that an API process answered by itself, because Redis was away.",
)
api_keys_known = _callers.gauge(
    "pricing_api_keys_known", "keys", "livemax", "API keys that an API process knows, ended ones among them."
)
api_keys_age = _callers.gauge(
    "pricing_api_keys_age_seconds",
    "seconds",
    "livemax",
    "How long ago the API process that is worst off last saw which keys there are; those that it knows go on.",
)

_reading = Section("Reading prices")

quotes = _reading.counter(
    "pricing_quotes_total",
    "quotes",
    "Quotes answered, by where their price came from: the API process' memory, Redis, PostgreSQL; stale: the last "
    "one known, because nothing newer was to be had; unknown: there is none; unavailable: it could not be read.",
    source=("near_cache", "cache", "database", "stale", "unknown", "unavailable"),
)
reader_breaker_open = _reading.gauge(
    "pricing_reader_breaker_open",
    "processes",
    "livesum",
    "API processes that do not ask a store for prices for the moment, because it failed repeatedly.",
    store=("postgresql", "cache"),
)
near_cache_entries = _reading.gauge(
    "pricing_near_cache_entries", "price sheets", "livesum", "Price sheets at hand in all API processes."
)
near_cache_bypassed = _reading.gauge(
    "pricing_near_cache_bypassed",
    "processes",
    "livesum",
    "API processes that do not hear the invalidation feed, and bypass their near cache.",
)
near_cache_resets = _reading.counter(
    "pricing_near_cache_resets_total",
    "resets",
    "Times that an API process distrusted all it had at hand, or was told to clear.",
)

_events = Section("Events")

events_published = _events.counter(
    "pricing_events_published_total",
    "events",
    "Events that this service put into the stream, by how they came: over the API, with a change of rules, or from "
    "the Pub/Sub channel. Repeats of an id are not counted again.",
    type=EVENT_TYPES,
    source=("api", "rules", "channel"),
)
events_refused = _events.counter(
    "pricing_events_refused_total",
    "events",
    "Events not accepted because the backlog was full; their senders come again.",
)
events_received = _events.counter(
    "pricing_events_received_total",
    "entries",
    "Stream entries that a listener put into inboxes: read, read_again (after an error, when it was not known what had "
    "been read), reclaimed (another listener had read them and died).",
    how=("read", "read_again", "reclaimed"),
)
events_processed = _events.counter(
    "pricing_events_processed_total",
    "entries",
    "Entries taken from inboxes: applied, repeated (applied before), failed (to be tried again), dead (set aside); by "
    "what does the work that they ask for, at once or as a recalculation. A process that dies may have counted less "
    "than it did: the ledger is exact.",
    type=(*EVENT_TYPES, "malformed"),
    handler=("apply_events", "recalculate"),
    status=("applied", "repeated", "failed", "dead"),
)
event_batch = _events.histogram(
    "pricing_event_batch_seconds", "seconds", LATENCY_S, "Time to apply and acknowledge one batch of an inbox."
)
event_to_price = _events.histogram(
    "pricing_event_to_price_seconds",
    "seconds",
    LATENCY_S,
    "From the acceptance of an event to its new prices being readable, of events applied at once.",
)
event_ledger = _events.gauge(
    "pricing_event_ledger",
    "events",
    "livemostrecent",
    "What became of every event that the stream ever accepted, by Redis' own books: accepted is the sum of unread, "
    "pending (in an inbox), applied, repeated (applied before), dead (set aside), and what was gone before the books.",
    entry=("accepted", "unread", "pending", "applied", "repeated", "dead", "before"),
)
stream_length = _events.gauge(
    "pricing_stream_length",
    "entries",
    "livemostrecent",
    "Entries in the stream, with applied ones not yet trimmed.",
)
stream_lag = _events.gauge(
    "pricing_stream_lag",
    "entries",
    "livemostrecent",
    "Stream entries that a consumer group has not read yet.",
    group=Open("the consumer groups of the stream"),
)
stream_pending = _events.gauge(
    "pricing_stream_pending",
    "entries",
    "livemostrecent",
    "Stream entries that a consumer group has read and not acknowledged.",
    group=Open("the consumer groups of the stream"),
)
backlog_limit = _events.gauge(
    "pricing_backlog_limit",
    "entries",
    "livemostrecent",
    "Unread and pending entries at which new events are refused (PRICING_MAX_BACKLOG_EVENTS).",
)
looked = _events.gauge(
    "pricing_listener_looked_timestamp_seconds",
    "seconds",
    "livemostrecent",
    "When a listener last saw all of this, in seconds since 1970.",
)
oldest_event_age = _events.gauge(
    "pricing_oldest_unapplied_event_age_seconds",
    "seconds",
    "livemostrecent",
    "Age of the oldest event that is not applied yet; 0 where there is none.",
)
boundary_overdue = _events.gauge(
    "pricing_oldest_due_boundary_age_seconds",
    "seconds",
    "livemostrecent",
    "How long ago a promotion began or ended whose prices are still to be recomputed; 0 where there is none.",
)
dead_letters = _events.gauge("pricing_dead_letters", "letters", "livemostrecent", "Events that are set aside now.")
dead_letters_handled = _events.counter(
    "pricing_dead_letters_handled_total",
    "letters",
    "Dead letters that were replayed or discarded over the API; what `pricing dlq` does is not counted.",
    how=("replayed", "discarded"),
)

_capture = Section("Request telemetry: from the API into the stream")

telemetry_noted = _capture.counter(
    "pricing_telemetry_noted_total",
    "records",
    "Requests that were answered: what is to be kept. All of them are published from memory, spilled, dropped "
    "(memory_full, spill_full, defect) or waiting in memory.",
)
telemetry_published = _capture.counter(
    "pricing_telemetry_published_total",
    "records",
    "Records that are in the stream, by where they came from. Of those from a spill, some may have been there before.",
    came_from=("memory", "spill"),
)
telemetry_spilled = _capture.counter(
    "pricing_telemetry_spilled_total",
    "records",
    "Records written to disk because the stream was away or full. All of them are published from the spill, damaged, "
    "or waiting there.",
)
telemetry_adopted = _capture.counter(
    "pricing_telemetry_adopted_total", "records", "Spilled records that were taken over from processes that had ended."
)
telemetry_dropped = _capture.counter(
    "pricing_telemetry_dropped_total",
    "records",
    "Records that are lost, and show as gaps: no room in memory, none on disk or the disk does not write, damaged on "
    "disk, or a defect.",
    reason=("memory_full", "spill_full", "damaged", "defect"),
)
telemetry_waiting = _capture.gauge(
    "pricing_telemetry_waiting",
    "records",
    "livesum",
    "Records that are not in the stream yet: in the memory of API processes, and in the segments on disk that they "
    "hold.",
    where=("memory", "spill"),
)
telemetry_unaccounted = _capture.gauge(
    "pricing_telemetry_unaccounted",
    "records",
    "livesum",
    "Records that API processes have taken over and that are neither published, spilled, dropped nor waiting: 0, or "
    "something is wrong with the program.",
)
telemetry_spill_bytes = _capture.gauge(
    "pricing_telemetry_spill_bytes", "bytes", "livemax", "What all API processes of a machine have on disk."
)
telemetry_spill_limit = _capture.gauge(
    "pricing_telemetry_spill_limit_bytes",
    "bytes",
    "livemax",
    "What they may have there (PRICING_TELEMETRY_SPILL_MB). Beyond it the newest records are dropped.",
)

_records = Section("Request records")

telemetry_write = _records.histogram(
    "pricing_telemetry_write_seconds",
    "seconds",
    LATENCY_S,
    "Time that a sink takes for one write, of up to 32 batches.",
    sink=SINKS,
)
telemetry_ledger = _records.gauge(
    "pricing_telemetry_ledger",
    "batches",
    "livemostrecent",
    "What became of every batch in the stream, for each sink by the books of its group: accepted is the sum of pending "
    "(to be read, or to be acknowledged), delivered, and dead (set aside).",
    sink=SINKS,
    entry=("accepted", "pending", "delivered", "dead"),
)
telemetry_delivered = _records.gauge(
    "pricing_telemetry_delivered_records",
    "records",
    "livemostrecent",
    "Records of requests that a sink has taken and acknowledged, since its group began.",
    sink=SINKS,
)
telemetry_oldest_age = _records.gauge(
    "pricing_oldest_unwritten_record_age_seconds",
    "seconds",
    "livemostrecent",
    "Age of the oldest batch in the stream that a sink has not acknowledged; 0 where there is none.",
    sink=SINKS,
)
telemetry_trimmed = _records.counter(
    "pricing_telemetry_trimmed_total",
    "batches",
    "Batches that were taken out of the stream because every sink had acknowledged them.",
)
requests_without_record = _records.gauge(
    "pricing_requests_without_record",
    "requests",
    "livemostrecent",
    "Requests that were answered between 10 minutes and a day ago and have no record in PostgreSQL, by their numbers.",
)
records_written = _records.counter(
    "pricing_records_written_total", "records", "Records of requests that were written to PostgreSQL, once each."
)
records_repeated = _records.counter(
    "pricing_records_repeated_total",
    "records",
    "Records that came to PostgreSQL again, after a crash between a write and its acknowledgement; nothing changed.",
)
records_misdated = _records.counter(
    "pricing_records_misdated_total",
    "records",
    "Records of requests that cannot have begun when they say, placed where they arrived: a process' clock is wrong.",
)

_work = Section("Background work")

sheets_stored = _work.counter(
    "pricing_sheets_stored_total",
    "price sheets",
    "New versions of price sheets, by what led to them.",
    cause=("event", "recalculation", "boundary"),
)
recalculation_sheets = _work.counter(
    "pricing_recalculation_sheets_total",
    "price sheets",
    "Price sheets that recalculations have looked at, and those of them that changed.",
    outcome=("looked_at", "changed"),
)
task_queue_length = _work.gauge(
    "pricing_task_queue_length", "tasks", "livemostrecent", "Tasks that wait for a worker.", queue=QUEUES
)
task_wait = _work.histogram(
    "pricing_task_wait_seconds",
    "seconds",
    LATENCY_S,
    "From queueing a task to its start, repeats left out.",
    task=TASKS,
)
task_duration = _work.histogram(
    "pricing_task_duration_seconds",
    "seconds",
    LATENCY_S,
    "Run time of tasks, by how they ended; held_back: a breaker was open.",
    task=TASKS,
    outcome=("succeeded", "retried", "failed", "held_back"),
)
task_retries = _work.counter(
    "pricing_task_retries_total",
    "repeats",
    "Tasks that are to be repeated, by the kind of error.",
    task=TASKS,
    reason=("unavailable", "overloaded", "conflict", "lock_lost", "connection", "timeout"),
)
breaker_state = _work.gauge(
    "pricing_breaker_state",
    "0 closed, 1 half open, 2 open",
    "livemostrecent",
    "Circuit breakers of stores, of kinds of work and of sinks, which all processes share.",
    breaker=BREAKERS,
)
lock_wait = _work.histogram(
    "pricing_lock_wait_seconds",
    "seconds",
    LATENCY_S,
    "From asking for a scope's work to the round that does it, by kind of scope.",
    kind=LOCKS,
)
lock_hold = _work.histogram(
    "pricing_lock_hold_seconds", "seconds", LATENCY_S, "How long a lock was held, by kind of scope.", kind=LOCKS
)
lock_renewals = _work.counter(
    "pricing_lock_renewals_total", "renewals", "Renewals of held locks, by kind of scope.", kind=LOCKS
)
lock_lost = _work.counter(
    "pricing_lock_lost_total", "locks", "Locks that were lost while held, by kind of scope.", kind=LOCKS
)
lock_left_to_holder = _work.counter(
    "pricing_lock_left_to_holder_total",
    "requests",
    "Requests that found their lock held, and became another round of its holder, by kind of scope.",
    kind=LOCKS,
)

_stores = Section("Stores")

database_connections = _stores.gauge(
    "pricing_database_connections",
    "connections",
    "livesum",
    "Connections to PostgreSQL of all processes.",
    state=("in_use", "idle"),
)
database_connections_limit = _stores.gauge(
    "pricing_database_connections_limit",
    "connections",
    "livesum",
    "Connections to PostgreSQL that the processes may have together, of those that have asked it anything.",
)
database_wait = _stores.histogram(
    "pricing_database_wait_seconds", "seconds", LATENCY_S, "From wanting a connection to PostgreSQL to having one."
)
database_transaction = _stores.histogram(
    "pricing_database_transaction_seconds",
    "seconds",
    LATENCY_S,
    "Time from wanting a transaction to its end.",
    outcome=("committed", "failed"),
)
redis_connections = _stores.gauge(
    "pricing_redis_connections",
    "connections",
    "livesum",
    "Connections to Redis of all processes, by what they are for; Celery's own are not among them.",
    role=("cache", "broker", "stream", "feed", "limits"),
    state=("in_use", "idle"),
)
cache_call = _stores.histogram(
    "pricing_cache_call_seconds",
    "seconds",
    LATENCY_S,
    "Time that Redis takes to answer: readers' get, lease and fill, writers' put of up to 500 price sheets.",
    call=("get", "lease", "fill", "put"),
)


def observe_many(histogram: Histogram, seconds: Sequence[float] | npt.NDArray[np.float64]) -> None:
    """As one `observe` each, but every bucket is written once. A bound histogram's buckets are not a public
    interface of prometheus-client 0.26; its version is pinned, and a test compares the two ways."""
    counts = np.bincount(np.searchsorted(histogram._upper_bounds, seconds))
    for bucket in np.flatnonzero(counts).tolist():
        histogram._buckets[bucket].inc(int(counts[bucket]))
    histogram._sum.inc(float(np.sum(seconds)))


def present(*kinds: str, revision: str | None) -> None:
    """This process lives, and does the work of these kinds of process. `revision` is what it was built from."""
    build.labels(version("pricing-engine"), platform.python_version(), revision or "unknown").set(1)
    for kind in kinds:
        processes.labels(kind).set(1)
