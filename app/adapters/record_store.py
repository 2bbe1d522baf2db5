"""The sink of request records in PostgreSQL: one row for each request, however often its batch comes."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import psycopg

from app.adapters.record_tables import Placed
from app.adapters.store import Store
from app.domain.arrivals import DAY_US, Arrival, SourceEnd, placed_us
from app.domain.telemetry import RecordBatch
from app.observability import metrics

DAYS_AHEAD = 2
"""For so many days there are partitions beforehand."""

FORGET_BATCH = 1_000


class RecordStore:
    """`kept_days` is how long records are kept."""

    def __init__(self, store: Store, kept_days: float) -> None:
        self._store, self._kept_days = store, kept_days
        self._days: set[date] = set()

    def write(self, items: Sequence[Arrival]) -> None:
        """All of them in one transaction. Raises `Unavailable`, and `InvalidInput` where a batch overlaps with what is
        there."""
        placed: list[Placed] = []
        ends: list[tuple[int, SourceEnd]] = []
        for arrived_ms, content, _ in items:
            if isinstance(content, RecordBatch):
                placed.append(self._placed(content, arrived_ms))
            else:
                ends.append((arrived_ms, content))
        days = _days(placed)
        if days - self._days:
            self._make(days)
        try:
            self._add(placed, ends)
        except psycopg.errors.CheckViolation:  # retention was quicker than a very late batch
            self._make(days)
            self._add(placed, ends)

    def _add(self, placed: Sequence[Placed], ends: Sequence[tuple[int, SourceEnd]]) -> None:
        with self._store.transaction() as tx:
            written = tx.records.add(placed, ends)
        metrics.records_written.inc(written)
        metrics.records_repeated.inc(sum(len(each.batch.records) for each in placed) - written)

    def _placed(self, batch: RecordBatch, arrived_ms: int) -> Placed:
        started_us, misdated = placed_us(batch, arrived_ms, self._kept_days)
        metrics.records_misdated.inc(misdated)
        return Placed(batch, started_us, arrived_ms)

    def _make(self, days: Iterable[date]) -> None:
        with self._store.transaction() as tx:
            tx.record_partitions.make(days)
            self._days = tx.record_partitions.days()

    def keep_up(self) -> None:
        """Make the partitions that are needed soon, and drop what is older than records are kept. Raises
        `Unavailable`; what was done is done."""
        now = datetime.now(UTC)
        self._make(now.date() + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1))
        oldest = now - timedelta(days=self._kept_days)
        for day in sorted(self._days):
            if day < oldest.date():
                with self._store.transaction() as tx:
                    tx.record_partitions.drop(day)
        forgotten = FORGET_BATCH
        until = datetime(oldest.year, oldest.month, oldest.day, tzinfo=UTC)
        while forgotten == FORGET_BATCH:
            with self._store.transaction() as tx:
                forgotten = tx.records.forget(until, FORGET_BATCH)


def _days(placed: Iterable[Placed]) -> set[date]:
    numbers = {us // DAY_US for each in placed for us in each.started_us}
    return {date(1970, 1, 1) + timedelta(days=number) for number in numbers}
