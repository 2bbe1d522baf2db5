"""What was used, counted in PostgreSQL from the exact rows."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from app.adapters.database import alone
from app.domain.usage import By, Per, UsageQuestion, UsageRow, Used

STREAMED_ROWS = 5_000

_COUNTED = (
    "count(*) AS requests",
    "count(*) FILTER (WHERE status >= 500) AS failed",
    "coalesce(sum(sent_bytes), 0)::int8 AS sent_bytes",
    "coalesce(sum(latency_ns), 0)::int8 AS latency_ns",
)


class UsageQueries:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def page(self, question: UsageQuestion, skip: int, limit: int) -> tuple[list[UsageRow], Used]:
        """At most `limit` rows after the first `skip`, in the order of their periods and values; and all of them in
        one, whether they are on the page or not. Takes one look at the records."""
        select, parameters = _select(question)
        sums = ", ".join(f"(sum({name}) OVER ())::int8" for name in ("requests", "failed", "sent_bytes", "latency_ns"))
        found = (
            alone(self._connection)
            .execute(
                f"SELECT *, {sums} FROM ({select}) rows ORDER BY {_order(question)} OFFSET %(skip)s LIMIT %(limit)s",
                parameters | {"skip": skip, "limit": limit},
                binary=True,
            )
            .fetchall()
        )
        total = _used(found[0][-4:]) if found else Used(0, 0, 0, 0.0)
        return [_row(question, row) for row in found], total

    def rows(self, question: UsageQuestion) -> Iterator[UsageRow]:
        """All of them, a few thousand at a time."""
        select, parameters = _select(question)
        with alone(self._connection).cursor("usage", binary=True) as cursor:
            cursor.itersize = STREAMED_ROWS
            cursor.execute(f"SELECT * FROM ({select}) rows ORDER BY {_order(question)}", parameters)
            for row in cursor:
                yield _row(question, row)


def _select(question: UsageQuestion) -> tuple[str, dict[str, Any]]:
    parameters: dict[str, Any] = {"from_at": question.from_at, "until_at": question.until_at}
    where = "started_at >= %(from_at)s AND started_at < %(until_at)s"
    for by, value in question.only.items():
        where += f" AND {by} = %({by})s"
        parameters[by] = int(value) if by is By.STATUS else value
    groups = [] if question.per is Per.ALL else [f"date_trunc('{question.per}', started_at, 'UTC') AS period"]
    groups += [by.value for by in question.by]
    numbers = ", ".join(str(number) for number in range(1, len(groups) + 1))
    group_by = f" GROUP BY {numbers}" if groups else " HAVING count(*) > 0"
    return f"SELECT {', '.join([*groups, *_COUNTED])} FROM request_records WHERE {where}{group_by}", parameters


def _order(question: UsageQuestion) -> str:
    """Texts by their code points, so that it is the same order wherever it is counted."""
    columns = [] if question.per is Per.ALL else ["period"]
    columns += [by.value if by is By.STATUS else f'{by.value} COLLATE "C"' for by in question.by]
    return ", ".join(columns) or "1"


def _row(question: UsageQuestion, row: Sequence[Any]) -> UsageRow:
    period: datetime | None = None
    if question.per is not Per.ALL:
        period, *row = row
    count = len(question.by)
    return UsageRow(period, tuple(str(value) for value in row[:count]), _used(row[count : count + 4]))


def _used(counted: Sequence[int]) -> Used:
    requests, failed, sent_bytes, latency_ns = counted
    return Used(requests, failed, sent_bytes, round(latency_ns / requests / 1e6, 3) if requests else 0.0)
