"""Requests that were answered: their rows, and which of every source's are there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import starmap
from typing import NamedTuple

import sqlalchemy as sa

from app.adapters.database import copy_in, run
from app.adapters.record_rows import COLUMNS, rows_of
from app.domain.arrivals import SourceEnd
from app.domain.record_gaps import Gap
from app.domain.record_ranges import Range, Ranges
from app.domain.telemetry import RecordBatch

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class Placed(NamedTuple):
    """A batch, when each of its requests began (us since 1970), and when it came into the stream (ms)."""

    batch: RecordBatch
    started_us: Sequence[int]
    arrived_ms: int


class RecordTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add(self, placed: Sequence[Placed], ends: Iterable[tuple[int, SourceEnd]]) -> int:
        """Write each record of these batches that is not there yet; how many. `ends` are sources that have ended, and
        when that came into the stream (ms). Raises `InvalidInput` where a batch overlaps with what is there."""
        keys = self._hold_sources(placed, ends)
        ranges = self._ranges(keys, placed)
        new: list[tuple[RecordBatch, int, Sequence[int]]] = []
        for batch, started_us, _ in placed:
            source_key, forgotten = keys[batch.source]
            last = batch.first + len(batch.records) - 1
            span = Range(batch.first, last, _at(min(started_us)), _at(max(started_us)))
            if last > forgotten and ranges[source_key].add(span):
                new.append((batch, source_key, started_us))
        if new:
            # Made as they are sent: PostgreSQL is at work on one block while the next is made.
            copy_in(self._connection, "request_records", COLUMNS, starmap(rows_of, new))
            self._save(ranges)
        return sum(len(batch.records) for batch, _, _ in new)

    def _hold_sources(
        self, placed: Iterable[Placed], ends: Iterable[tuple[int, SourceEnd]]
    ) -> dict[str, tuple[int, int]]:
        """By source, its key and up to where it is forgotten; nobody else adds to it before this transaction ends."""
        heard: dict[str, tuple[int | None, int | None, int]] = {}
        for batch, _, arrived_ms in placed:
            _, last, before = heard.get(batch.source, (None, None, 0))
            heard[batch.source] = batch.process_id, last, max(before, arrived_ms)
        for arrived_ms, end in ends:
            process_id, last, before = heard.get(end.source, (None, None, 0))
            heard[end.source] = process_id, max(last or 0, end.last), max(before, arrived_ms)
        names = sorted(heard)  # in one order, so that two transactions wait for each other instead of deadlocking
        held = run(
            self._connection,
            "INSERT INTO record_sources AS s (source, process_id, ended_sequence, heard_at)"
            " SELECT source, process_id, ended, to_timestamp(heard_ms / 1000.0)"
            " FROM unnest(%(names)s::text[], %(process_ids)s::int8[], %(ended)s::int8[], %(heard_ms)s::int8[])"
            "   AS n (source, process_id, ended, heard_ms)"
            " ON CONFLICT (source) DO UPDATE SET process_id = coalesce(s.process_id, excluded.process_id),"
            "   ended_sequence = greatest(s.ended_sequence, excluded.ended_sequence),"
            "   heard_at = greatest(s.heard_at, excluded.heard_at)"
            " RETURNING source, source_key, forgotten_sequence",
            {
                "names": names,
                "process_ids": [heard[name][0] for name in names],
                "ended": [heard[name][1] for name in names],
                "heard_ms": [heard[name][2] for name in names],
            },
        )
        return {source: (source_key, forgotten) for source, source_key, forgotten in held}

    def _ranges(self, keys: Mapping[str, tuple[int, int]], placed: Iterable[Placed]) -> dict[int, Ranges]:
        """By source key, the ranges that these batches may be in, overlap with or touch."""
        spans: dict[int, tuple[int, int]] = {}
        for batch, _, _ in placed:
            source_key, _ = keys[batch.source]
            first, last = spans.get(source_key, (batch.first, batch.first))
            spans[source_key] = min(first, batch.first), max(last, batch.first + len(batch.records))
        found = run(
            self._connection,
            "SELECT r.source_key, first, last, earliest_at, latest_at FROM record_ranges r"
            " JOIN unnest(%(keys)s::int4[], %(lowest)s::int8[], %(highest)s::int8[]) n (source_key, lowest, highest)"
            " ON r.source_key = n.source_key AND first <= highest + 1 AND last >= lowest - 1",
            {
                "keys": list(spans),
                "lowest": [first for first, _ in spans.values()],
                "highest": [last for _, last in spans.values()],
            },
        )
        known: dict[int, list[Range]] = defaultdict(list)
        for source_key, *span in found:
            known[source_key].append(Range(*span))
        return {source_key: Ranges(known[source_key]) for source_key in spans}

    def _save(self, ranges: Mapping[int, Ranges]) -> None:
        """What begins as before is changed in place."""
        new = [(key, each) for key, its in ranges.items() for each in its.new()]
        begin = {(key, each.first) for key, each in new}
        gone = [(key, each.first) for key, its in ranges.items() for each in its.gone()]
        gone = [begun for begun in gone if begun not in begin]
        if gone:
            run(
                self._connection,
                "DELETE FROM record_ranges r USING unnest(%(keys)s::int4[], %(firsts)s::int8[]) n (source_key, first)"
                " WHERE r.source_key = n.source_key AND r.first = n.first",
                {"keys": [key for key, _ in gone], "firsts": [first for _, first in gone]},
            )
        run(
            self._connection,
            "INSERT INTO record_ranges (source_key, first, last, earliest_at, latest_at)"
            " SELECT * FROM unnest(%(keys)s::int4[], %(firsts)s::int8[], %(lasts)s::int8[],"
            "   %(earliest)s::timestamptz[], %(latest)s::timestamptz[])"
            " ON CONFLICT (source_key, first) DO UPDATE"
            " SET last = excluded.last, earliest_at = excluded.earliest_at, latest_at = excluded.latest_at",
            {
                "keys": [key for key, _ in new],
                "firsts": [each.first for _, each in new],
                "lasts": [each.last for _, each in new],
                "earliest": [each.earliest_at for _, each in new],
                "latest": [each.latest_at for _, each in new],
            },
        )

    def gaps(self, from_at: datetime, until_at: datetime, limit: int) -> list[Gap]:
        """What is missing of requests that may have been answered in that time, the oldest first: between two ranges
        of a source, before its first, and after its last up to where it ended."""
        found = run(
            self._connection,
            "SELECT source, greatest(first, forgotten_sequence + 1), last, after_at, before_at,"
            "   ended_sequence IS NOT NULL FROM ("
            "   SELECT source_key, lag(last, 1, 0) OVER its + 1 AS first, r.first - 1 AS last,"
            "     lag(latest_at) OVER its AS after_at, earliest_at AS before_at"
            "   FROM record_ranges r WINDOW its AS (PARTITION BY source_key ORDER BY r.first)"
            "   UNION ALL"
            "   SELECT s.source_key, coalesce(max(r.last), s.forgotten_sequence) + 1, s.ended_sequence,"
            "     max(latest_at), s.heard_at"
            "   FROM record_sources s LEFT JOIN record_ranges r USING (source_key)"
            "   WHERE s.ended_sequence IS NOT NULL GROUP BY s.source_key"
            " ) holes (source_key, first, last, after_at, before_at) JOIN record_sources USING (source_key)"
            " WHERE first <= last AND last > forgotten_sequence"
            "   AND before_at >= %(from_at)s AND (after_at IS NULL OR after_at < %(until_at)s)"
            " ORDER BY before_at, source, first LIMIT %(limit)s",
            {"from_at": from_at, "until_at": until_at, "limit": limit},
        )
        return [Gap(*row) for row in found]

    def forget(self, until: datetime, limit: int) -> int:
        """No longer know of ranges of which every request began before that, at most `limit`; how many. What is
        missing before them is not missing any more; sources that said nothing since then are forgotten whole."""
        forgotten = run(
            self._connection,
            "WITH old AS ("
            "   DELETE FROM record_ranges WHERE (source_key, first) IN ("
            "     SELECT source_key, first FROM record_ranges WHERE latest_at < %(until)s ORDER BY 1, 2 LIMIT %(limit)s"
            "   ) RETURNING source_key, last"
            " ) UPDATE record_sources s SET forgotten_sequence = greatest(s.forgotten_sequence, o.last)"
            " FROM (SELECT source_key, max(last) AS last, count(*) AS ranges FROM old GROUP BY 1) o"
            " WHERE s.source_key = o.source_key RETURNING o.ranges",
            {"until": until, "limit": limit},
        )
        ranges = sum(int(number) for (number,) in forgotten)
        run(
            self._connection,
            "DELETE FROM record_sources s WHERE heard_at < %(until)s"
            " AND NOT EXISTS (SELECT FROM record_ranges r WHERE r.source_key = s.source_key)",
            {"until": until},
        )
        return ranges


def _at(us: int) -> datetime:
    return _1970 + timedelta(microseconds=us)
