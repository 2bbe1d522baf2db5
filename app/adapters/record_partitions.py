"""request_records has a partition per UTC day: made before it is needed, dropped when it is too old."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa

from app.adapters.database import run

_PREFIX = "request_records_"

_MAKING = 7_204_312
"""Two processes that need the same partition make it one after the other; the number is arbitrary and ours."""

_LONGEST_LOCK_MS = 2_000
"""To drop a partition waits for who reads, and who writes waits behind it: not longer than this, then another time."""


class RecordPartitions:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def days(self) -> set[date]:
        """Those that have a partition."""
        found = run(
            self._connection,
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'request_records'::regclass",
            {},
        )
        return {datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").date() for (name,) in found}

    def make(self, days: Iterable[date]) -> None:
        """Partitions for these days, where they have none. Nobody who reads or writes others waits: a table of its own
        that is attached afterwards takes a lighter lock than one that is made as a partition."""
        run(self._connection, "SELECT pg_advisory_xact_lock(%(making)s)", {"making": _MAKING})
        for day in sorted(set(days) - self.days()):
            name = _name(day)
            self._do(f"CREATE TABLE {name} (LIKE request_records INCLUDING ALL)")
            self._do(f"ALTER TABLE request_records ATTACH PARTITION {name} FOR VALUES FROM {_bound(day)} TO "
                     f"{_bound(day + timedelta(days=1))}")  # fmt: skip

    def drop(self, day: date) -> None:
        """Raises `Unavailable` where somebody is at it for longer than we may keep others waiting."""
        self._do(f"SET LOCAL lock_timeout = {_LONGEST_LOCK_MS}")
        self._do(f"DROP TABLE IF EXISTS {_name(day)}")

    def _do(self, statement: str) -> None:
        self._connection.exec_driver_sql(statement)


def day_of(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _name(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _bound(day: date) -> str:
    return f"('{day.isoformat()} 00:00:00+00')"
