"""Batches out of single items: by number, bytes, or time, whichever comes first."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Limits(NamedTuple):
    """A batch has `records` at most, and `bytes` where sizes are known (but always one record); it ends when its
    oldest record has waited `age_ms`, and `interval_ms` after the batch before it."""

    records: int
    bytes: int | None = None
    age_ms: int | None = None
    interval_ms: int | None = None


class Batcher(Generic[T]):
    """`clock` gives ms that never run backwards; `size_of` an item's bytes, for a limit of these."""

    def __init__(self, limits: Limits, clock: Callable[[], int], size_of: Callable[[T], int] = lambda item: 0) -> None:
        self._limits, self._clock, self._size_of = limits, clock, size_of
        self._items: list[T] = []
        self._bytes = 0
        self._oldest_at = self._batch_at = clock()

    def add(self, items: Sequence[T]) -> list[list[T]]:
        """The batches that are full now; what is left waits for more, or for its time."""
        batches: list[list[T]] = []
        at = 0
        while at < len(items):
            if not self._items:
                self._oldest_at = self._clock()
            fit = self._fitting(items, at)
            self._items += items[at : at + fit]
            at += fit
            if at < len(items) or self._is_full():
                batches.append(self.flush())
        return batches

    def due_in_ms(self) -> int | None:
        """When the batch in hand ends by time: 0 for now, None for never."""
        if not self._items:
            return None
        ends = []
        if self._limits.age_ms is not None:
            ends.append(self._oldest_at + self._limits.age_ms)
        if self._limits.interval_ms is not None:
            ends.append(self._batch_at + self._limits.interval_ms)
        return max(0, min(ends) - self._clock()) if ends else None

    def flush(self) -> list[T]:
        """The batch in hand, as it is; may be empty."""
        batch, self._items, self._bytes = self._items, [], 0
        self._batch_at = self._clock()
        return batch

    def __len__(self) -> int:
        return len(self._items)

    def _is_full(self) -> bool:
        full = self._limits.bytes is not None and self._bytes >= self._limits.bytes
        return full or len(self._items) == self._limits.records

    def _fitting(self, items: Sequence[T], at: int) -> int:
        """How many more fit into the batch in hand, whose bytes then count them; at least one into an empty one."""
        room = self._limits.records - len(self._items)
        if self._size_of is None or self._limits.bytes is None:
            return min(room, len(items) - at)
        fit = 0
        for item in items[at : at + room]:
            size = self._size_of(item)
            if self._bytes + size > self._limits.bytes and (self._items or fit):
                break
            self._bytes += size
            fit += 1
            if self._bytes >= self._limits.bytes:
                break
        return fit
