"""A bounded buffer between one thread that puts and one that takes."""

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, TypeVar

from app.domain.account import Account
from app.errors import Overloaded

T = TypeVar("T")


class WhenFull(Enum):
    """What happens to what does not fit."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    REJECT = "reject"
    """The caller hears of it, as `Overloaded`, and the item was never accepted."""
    SPILL = "spill"
    """The older half goes elsewhere, such as to disk, in the thread that puts."""


class Buffer(Generic[T]):
    """Holds `capacity` items. Takes no lock: every count has one writer, and a deque's ends are safe to use from two
    threads. Where several threads put, they take turns by a lock of their own.

    `spill` is told what does not fit, oldest first, and has taken it over when it returns; for the policy SPILL only.
    """

    def __init__(
        self, capacity: int, when_full: WhenFull, spill: Callable[[Sequence[T]], object] | None = None
    ) -> None:
        assert (spill is not None) == (when_full is WhenFull.SPILL)
        self._items: deque[T] = deque()
        self._capacity, self._when_full, self._spill = capacity, when_full, spill
        self._put = self._taken = 0
        self.dropped = self.rejected = self.spilled = 0

    def put(self, item: T) -> bool:
        """Whether it was kept, here or where it was spilled to. Raises `Overloaded` where it is full and the policy
        is to reject."""
        if len(self._items) >= self._capacity and not self._make_room():
            return False
        self._items.append(item)
        self._put += 1
        return True

    def take(self, count: int) -> list[T]:
        """The oldest, at most `count`; none where it is empty. They are the caller's."""
        items = self._pop(count)
        self._taken += len(items)
        return items

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[T]:
        """Those that are in it now."""
        return list(self._items)

    def account(self) -> Account:
        """Exact while neither thread is at it. What was spilled or taken has been delivered."""
        return Account(
            accepted=self._put + (self.dropped if self._when_full is WhenFull.DROP_NEWEST else 0),
            delivered=self._taken + self.spilled,
            dropped=self.dropped,
            pending=len(self._items),
        )

    def _make_room(self) -> bool:
        match self._when_full:
            case WhenFull.REJECT:
                self.rejected += 1
                raise Overloaded(f"{self._capacity} wait already")
            case WhenFull.DROP_NEWEST:
                self.dropped += 1
                return False
            case WhenFull.DROP_OLDEST:
                self.dropped += len(self._pop(1))
            case WhenFull.SPILL:
                oldest = self._pop(max(1, self._capacity // 2))
                assert self._spill is not None
                self._spill(oldest)
                self.spilled += len(oldest)
        return True

    def _pop(self, count: int) -> list[T]:
        """The oldest; fewer where the other thread was quicker."""
        items: list[T] = []
        try:
            while len(items) < count:
                items.append(self._items.popleft())
        except IndexError:
            pass
        return items
