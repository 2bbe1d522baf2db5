"""Which of a source's requests are kept, as ranges of their numbers: what is missing, and what has come twice."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from app.errors import InvalidInput


class Range(NamedTuple):
    """Numbers `first` to `last`, both included, of requests that began between these times (UTC)."""

    first: int
    last: int
    earliest_at: datetime
    latest_at: datetime


class Ranges:
    """Of one source: never overlapping, and those that touch are one. So a source of which nothing is missing has one
    range, however many batches it sent."""

    def __init__(self, known: Iterable[Range] = ()) -> None:
        self._ranges = sorted(known)
        self._known = set(self._ranges)

    def add(self, new: Range) -> bool:
        """Whether these numbers are new; False where all of them are there. Raises `InvalidInput` where only some are:
        batches never change, so two that overlap are a defect, and neither is a bill."""
        at = bisect_right(self._ranges, new.first, key=lambda known: known.first)
        before = self._ranges[at - 1] if at else None
        after = self._ranges[at] if at < len(self._ranges) else None
        if before is not None and before.last >= new.last:
            return False
        for other in (before, after):
            if other is not None and other.first <= new.last and other.last >= new.first:
                raise InvalidInput(
                    f"requests {new.first} to {new.last} overlap with {other.first} to {other.last}, which are kept"
                )
        joins_before = before is not None and before.last + 1 == new.first
        joins_after = after is not None and new.last + 1 == after.first
        begin, end = at - joins_before, at + joins_after
        self._ranges[begin:end] = [_join([*self._ranges[begin:end], new])]
        return True

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def gone(self) -> list[Range]:
        """Those known at first that have become part of others."""
        return sorted(self._known.difference(self._ranges))

    def new(self) -> list[Range]:
        """Those that were not known at first."""
        return sorted(set(self._ranges) - self._known)


def _join(ranges: list[Range]) -> Range:
    return Range(
        min(each.first for each in ranges),
        max(each.last for each in ranges),
        min(each.earliest_at for each in ranges),
        max(each.latest_at for each in ranges),
    )
