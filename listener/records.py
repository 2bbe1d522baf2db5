"""Records of requests: hints where a sink has something to write, and the upkeep of their stream and their tables.

A sink that is away holds up nothing else here: only its group's entries stay in the stream.
"""

from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from app.adapters.task_names import TELEMETRY_QUEUE, telemetry_scope
from app.bootstrap import Resources
from app.errors import Unavailable
from app.observability import metrics
from listener.chore import Chore

_logger = structlog.get_logger(__name__)

LOOK_INTERVAL_S = 1.0
TRIM_INTERVAL_S = 5.0
GAPS_INTERVAL_S = 30.0
KEEP_UP_INTERVAL_S = 3600.0

GAPS_SINCE, GAPS_UNTIL = timedelta(days=1), timedelta(minutes=10)
"""Ago. What is younger may still be on its way, by a disk for example."""

MOST_GAPS = 10_000


def chores(resources: Resources) -> list[Chore]:
    """Those of a listener."""
    return [
        Chore(partial(_look, resources), LOOK_INTERVAL_S),
        Chore(partial(_trim, resources), TRIM_INTERVAL_S),
        Chore(partial(_look_for_gaps, resources), GAPS_INTERVAL_S),
        Chore(partial(_keep_up, resources), KEEP_UP_INTERVAL_S),
    ]


def _look(resources: Resources) -> None:
    """Hint where something waits and nobody is at it; note what is seen."""
    for sink, group in resources.records.groups.items():
        account, lag = group.account(), group.lag()
        for entry in ("accepted", "pending", "delivered", "dead"):
            metrics.telemetry_ledger.labels(sink, entry).set(getattr(account, entry))
        metrics.telemetry_delivered.labels(sink).set(group.records())
        metrics.telemetry_oldest_age.labels(sink).set(lag.oldest_s)
        waits = lag.unread + lag.pending > 0 and bool(resources.locks.idle([telemetry_scope(sink)]))
        if waits and resources.queue.is_short(TELEMETRY_QUEUE):
            resources.queue.write_telemetry(sink)


def _trim(resources: Resources) -> None:
    """The one place where the stream is trimmed; never before every sink has its group."""
    resources.records.ensure()
    for sink in resources.records.dismiss_unserved():
        _logger.warning("records no longer wait for a sink that no listener has configured", sink=sink)
    metrics.telemetry_trimmed.inc(resources.records.trim())


def _look_for_gaps(resources: Resources) -> None:
    now = datetime.now(UTC)
    with resources.store.transaction() as tx:
        gaps = tx.records.gaps(now - GAPS_SINCE, now, MOST_GAPS)
    metrics.requests_without_record.set(sum(gap.missing for gap in gaps if gap.before_at < now - GAPS_UNTIL))


def _keep_up(resources: Resources) -> float | None:
    """Partitions; another time, where PostgreSQL is away or somebody reads what is too old."""
    try:
        resources.record_store.keep_up()
    except Unavailable as error:
        _logger.warning("partitions of request records wait", error=str(error))
        return TRIM_INTERVAL_S * 12
    return None
