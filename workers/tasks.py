"""The tasks. Each decodes, calls a service and returns; names are those of `app.adapters.task_names`.

Each is a hint that something is to be done, under the lock of its scope. Losing one loses nothing.
"""

from collections import Counter
from collections.abc import Mapping

import structlog
from celery import Celery

from app.adapters.breakers import APPLYING, BOUNDARIES, CACHE, POSTGRESQL, RECALCULATING
from app.adapters.inbox import HeldInbox
from app.adapters.task_names import (
    APPLY_EVENTS,
    BOUNDARY_SCOPE,
    RECALCULATE,
    REPRICE_DUE,
    WRITE_TELEMETRY,
    telemetry_scope,
)
from app.bootstrap import Resources, now_ms
from app.domain.events import Event, decode_event
from app.domain.positions import accepted_at_ms
from app.errors import TRANSIENT, MalformedEvent
from app.observability import metrics
from app.observability.tracing import batch_span, messaging
from app.services.delivery import Delivered, deliver
from app.services.ports import BreakerState, Held, Turn, Waiting
from app.services.recalculation import HELD_SHARE, Recalculation
from app.services.repricing import reprice_due as reprice_due_sheets
from workers.base import PricingTask
from workers.context import resources

_logger = structlog.get_logger(__name__)

BATCH = 500
"""Events that are applied in one transaction, at most."""

TURN_S = 0.1
"""How long one task works off an inbox before the next one's turn comes: there are more inboxes than workers."""

TELEMETRY_TURN_S = 1.0
"""How long one task writes to a sink before another's turn comes, or a recalculation's."""

DUE_BATCH = 5_000
"""Price sheets per transaction when a promotion's boundary has passed."""


def apply_events(scope: str) -> None:
    """Work off the inbox of a scope; a run that finds another at it leaves it the work."""
    deps = resources()
    beginning = deps.inboxes.taking(scope, BATCH)
    if deps.locks.in_rounds(scope, lambda held: _apply_batch(held, deps), TURN_S, beginning) is Turn.UNFINISHED:
        deps.queue.apply_events(scope)


def _apply_batch(held: HeldInbox, deps: Resources) -> bool:
    """Whether there may be more to do now: not after a batch that has opened the breaker. One that says nothing new, of
    suspects that fail once more, is no reason to stop: what says something may wait behind it."""
    batch = deps.inboxes.take(held, BATCH)
    if not batch:
        return False
    events, malformed = _decode(batch)
    attributes = messaging("redis", "apply", "process", deps.settings.event_stream) | {
        "messaging.batch.message_count": len(batch),
        "pricing.scope": held.scope,
        "pricing.queue_wait_ms": max(0, now_ms() - min(accepted_at_ms(waiting.stream_id) for waiting in batch)),
    }
    with (
        batch_span("apply events", [event.traceparent for event in events.values()], attributes),
        metrics.event_batch.time(),
    ):
        delivered = deliver(
            held,
            batch,
            events,
            malformed,
            inboxes=deps.inboxes,
            breakers=deps.breakers,
            store=deps.store,
            cache=deps.cache,
            queue=deps.queue,
            clock=now_ms,
            max_attempts=deps.settings.max_attempts,
        )
    _logger.debug("batch", scope=held.scope, entries=[waiting.stream_id for waiting in batch])
    _report(held.scope, delivered)
    _count(delivered, events)
    return delivered.breaker is not BreakerState.OPEN


def _decode(batch: list[Waiting]) -> tuple[dict[str, Event], dict[str, str]]:
    """By stream id, the events, and the reasons why the others are none."""
    events: dict[str, Event] = {}
    malformed: dict[str, str] = {}
    for waiting in batch:
        try:
            events[waiting.stream_id] = decode_event(waiting.event)
        except MalformedEvent as error:
            malformed[waiting.stream_id] = str(error)
    return events, malformed


def _report(scope: str, delivered: Delivered) -> None:
    if delivered.error is not None:
        _logger.error("events failed", scope=scope, events=delivered.failed, exc_info=delivered.error)
    for letter in delivered.letters:
        _logger.warning("event set aside", stream_id=letter.stream_id, event_id=letter.event_id, reason=letter.reason)


def _count(delivered: Delivered, events: Mapping[str, Event]) -> None:
    kinds: Counter[tuple[str, str, str]] = Counter()
    for stream_id, fate in delivered.fates.items():
        type_ = events[stream_id].type.value if stream_id in events else "malformed"
        kinds[type_, "recalculate" if stream_id in delivered.wide else "apply_events", fate] += 1
    for kind, count in kinds.items():
        metrics.events_processed.labels(*kind).inc(count)
    readable = [i for i, fate in delivered.fates.items() if fate == "applied" and i not in delivered.wide]
    metrics.observe_many(metrics.event_to_price, [max(0.0, now_ms() - accepted_at_ms(i)) / 1000 for i in readable])
    metrics.sheets_stored.labels("event").inc(delivered.sheets)


def recalculate(task_id: str, part: int | None = None) -> None:
    """One turn at a part of a recalculation; without a part, its beginning."""
    deps = resources()
    Recalculation(
        store=deps.store,
        cache=deps.cache,
        locks=deps.locks,
        queue=deps.queue,
        clock=now_ms,
        batch_rows=deps.settings.recalculation_batch_size,
        held_rows=max(1, deps.settings.recalculation_batch_size // HELD_SHARE),
        part_rows=deps.settings.recalculation_part_size,
        max_attempts=deps.settings.max_attempts,
        on_batch=_count_batch,
    ).work_on(task_id, part)


def _count_batch(looked_at: int, changed: int) -> None:
    metrics.recalculation_sheets.labels("looked_at").inc(looked_at)
    metrics.recalculation_sheets.labels("changed").inc(changed)
    metrics.sheets_stored.labels("recalculation").inc(changed)


def reprice_due() -> None:
    """Reprice every sheet whose promotions began or ended; a run that finds another at it leaves it the work."""
    deps = resources()

    def batch(held: Held) -> bool:
        sheets, more = reprice_due_sheets(held, deps.store, deps.cache, DUE_BATCH)
        metrics.sheets_stored.labels("boundary").inc(sheets)
        return more

    if deps.locks.in_rounds(BOUNDARY_SCOPE, batch, TURN_S) is Turn.UNFINISHED:
        deps.queue.reprice_due()


def write_telemetry(sink: str) -> None:
    """Write records of requests to a sink. Where that is away it ends, since there is nothing to wait for here: its own
    breaker says when it is tried again, and a listener hints."""
    deps = resources()

    def turn(held: Held) -> bool:
        try:
            more: bool = deps.record_sinks.work(sink, TELEMETRY_TURN_S)
            return more
        except TRANSIENT as error:
            _logger.warning("records wait for their sink", sink=sink, error=str(error))
            return False

    if deps.locks.in_rounds(telemetry_scope(sink), turn, turn_s=0) is Turn.UNFINISHED:
        deps.queue.write_telemetry(sink)


def register(application: Celery) -> None:
    """Put the tasks into a Celery application, under their names, each with the breakers that it needs closed."""
    for name, task, breaker in (
        (APPLY_EVENTS, apply_events, APPLYING),
        (RECALCULATE, recalculate, RECALCULATING),
        (REPRICE_DUE, reprice_due, BOUNDARIES),
    ):
        needed = (POSTGRESQL, CACHE, breaker)
        application.task(task, name=name, base=PricingTask, breakers=needed, tells=breaker == APPLYING)
    application.task(write_telemetry, name=WRITE_TELEMETRY, base=PricingTask)
