"""What was used, by whom, and how complete that is."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from app.domain.record_gaps import Gap
from app.domain.usage import LONGEST_SPAN, UsageQuestion, UsageRow, Used
from app.errors import InvalidInput
from app.services.ports import RecordBacklog, Store

MOST_GAPS = 10_000

_CLOCK_S = 1.0
"""Ages are told in whole seconds."""


class Completeness(NamedTuple):
    """Every record that had reached the stream before `complete_until` is counted. What is `missing` of the time that
    was asked for has not come, by the numbers of its source."""

    complete_until: datetime
    missing: int
    gaps: int


class UsagePage(NamedTuple):
    rows: Sequence[UsageRow]
    total: Used
    completeness: Completeness


def check(question: UsageQuestion) -> None:
    """Raises `InvalidInput` where the time that is asked for is none, or too long."""
    if question.until_at <= question.from_at:
        raise InvalidInput("until must be later than from", "until")
    if question.until_at - question.from_at > LONGEST_SPAN:
        raise InvalidInput(f"from and until are more than {LONGEST_SPAN.days} days apart", "until")
    if len(set(question.by)) < len(question.by):
        raise InvalidInput("by names something twice", "by")


def page(store: Store, backlog: RecordBacklog, question: UsageQuestion, skip: int, limit: int) -> UsagePage:
    """Raises `InvalidInput`, `Unavailable`."""
    check(question)
    complete_until = _complete_until(backlog)  # before the rows are read: what comes meanwhile may be counted or not
    with store.transaction() as tx:
        rows, total = tx.usage.page(question, skip, limit)
        gaps = tx.records.gaps(question.from_at, question.until_at, MOST_GAPS)
    return UsagePage(rows, total, _completeness(complete_until, gaps))


def stream(store: Store, backlog: RecordBacklog, question: UsageQuestion) -> tuple[Completeness, Iterator[UsageRow]]:
    """All rows, as they are read. Raises `InvalidInput`, `Unavailable`."""
    check(question)
    complete_until = _complete_until(backlog)
    with store.transaction() as tx:
        gaps = tx.records.gaps(question.from_at, question.until_at, MOST_GAPS)

    def rows() -> Iterator[UsageRow]:
        with store.transaction() as tx:
            yield from tx.usage.rows(question)

    return _completeness(complete_until, gaps), rows()


def _complete_until(backlog: RecordBacklog) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=backlog.oldest_s() + _CLOCK_S)


def _completeness(complete_until: datetime, gaps: Sequence[Gap]) -> Completeness:
    return Completeness(complete_until, sum(gap.missing for gap in gaps), len(gaps))
