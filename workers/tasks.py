"""The tasks. Each decodes, calls a service and returns; names are those of `app.adapters.task_queue`."""

from collections.abc import Sequence
from contextlib import suppress

import structlog
from celery import Celery

from app.adapters.event_log import Entry, position
from app.adapters.task_queue import APPLY_EVENTS, RECALCULATE, REPRICE_DUE
from app.bootstrap import now_ms
from app.domain.events import decode_event
from app.errors import LockHeld
from app.observability import metrics
from app.services import recalculation
from app.services.applying import Positioned
from app.services.applying import apply_events as apply_to_prices
from app.services.repricing import reprice_due as reprice_due_sheets
from workers.base import PricingTask
from workers.context import resources

_logger = structlog.get_logger(__name__)

DUE_BATCH = 5_000
"""Price sheets per transaction when a promotion's boundary has passed."""


def apply_events(scope: str, entries: Sequence[tuple[str, str]]) -> None:
    """Apply stream entries (stream id, event as JSON) and acknowledge them, once their effect is committed
    and cached. The listener has decoded each before, so none is malformed here."""
    deps = resources()
    batch = [Positioned(stream_id, position(stream_id), decode_event(event)) for stream_id, event in entries]
    with deps.log.attempt([stream_id for stream_id, _ in entries]):
        applied = apply_to_prices(
            scope, batch, store=deps.store, cache=deps.cache, locks=deps.locks, queue=deps.queue, clock=now_ms
        )
    events = dict(entries)
    for refused in applied.refused:
        _logger.warning("event refused", stream_id=refused.stream_id, reason=refused.reason)
        deps.log.dead_letter(Entry(refused.stream_id, events[refused.stream_id].encode()), refused.reason, 1)
    deps.log.acknowledge(list(events.keys() - {refused.stream_id for refused in applied.refused}))
    metrics.events_processed.labels("refused").inc(len(applied.refused))
    metrics.events_processed.labels("applied").inc(applied.new)
    metrics.events_processed.labels("repeated").inc(len(batch) - applied.new)
    metrics.sheets_stored.labels("event").inc(applied.sheets)


def recalculate(task_id: str) -> None:
    """One turn of a recalculation; a turn that finds another at it leaves it the work."""
    deps = resources()
    with suppress(LockHeld):
        recalculation.recalculate(
            task_id,
            deps.settings.recalculation_batch_size,
            store=deps.store,
            cache=deps.cache,
            locks=deps.locks,
            queue=deps.queue,
            clock=now_ms,
        )


def reprice_due() -> None:
    """Reprice every sheet whose promotions began or ended; a run that finds another at it leaves it the work."""
    deps = resources()
    with suppress(LockHeld), deps.locks.hold("due"):
        metrics.sheets_stored.labels("boundary").inc(reprice_due_sheets(deps.store, deps.cache, now_ms, DUE_BATCH))


def register(application: Celery) -> None:
    """Put the tasks into a Celery application, under their names."""
    for name, task in ((APPLY_EVENTS, apply_events), (RECALCULATE, recalculate), (REPRICE_DUE, reprice_due)):
        application.task(task, name=name, base=PricingTask)
