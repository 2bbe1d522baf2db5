"""Requests that were answered and whose records are not there."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Gap(NamedTuple):
    """Numbers `first` to `last` of a source, both included. They were answered after `after_at` and before
    `before_at` (UTC); the first is None where nothing of the source came before."""

    source: str
    first: int
    last: int
    after_at: datetime | None
    before_at: datetime
    ended: bool
    """The source has ended; one that lives may still have these on its disk."""

    @property
    def missing(self) -> int:
        return self.last - self.first + 1


class Known(StrEnum):
    """Where the records of a gap are."""

    NOWHERE = "nowhere"
    """They were lost with a process that was killed, or are on the disk of one that lives."""
    STREAM = "stream"
    """They will be written."""
    DEAD_LETTERS = "dead_letters"
    """PostgreSQL refused their batch; `pricing telemetry dlq` tells why."""


class Missing(NamedTuple):
    """A part of a gap, and where it is."""

    gap: Gap
    where: Known


def look_for(
    gaps: Iterable[Gap], stream: Iterable[tuple[str, int, int]], dead: Iterable[tuple[str, int, int]]
) -> list[Missing]:
    """The gaps in parts, by where each is. Batches in the stream and set aside are told by source, first and last."""
    batches: dict[str, list[tuple[int, int, Known]]] = defaultdict(list)
    for known, some in ((Known.STREAM, stream), (Known.DEAD_LETTERS, dead)):
        for source, first, last in some:
            batches[source].append((first, last, known))
    for its in batches.values():
        its.sort()
    return [part for gap in gaps for part in _parts(gap, batches[gap.source])]


def _parts(gap: Gap, batches: Iterable[tuple[int, int, Known]]) -> Iterator[Missing]:
    at = gap.first
    for first, last, known in batches:
        first, last = max(first, at), min(last, gap.last)
        if first > last:
            continue
        if first > at:
            yield Missing(gap._replace(first=at, last=first - 1), Known.NOWHERE)
        yield Missing(gap._replace(first=first, last=last), known)
        at = last + 1
    if at <= gap.last:
        yield Missing(gap._replace(first=at), Known.NOWHERE)
