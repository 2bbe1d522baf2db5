"""The near cache: slots in this process, trusted only while the invalidation feed is heard.

Staleness is bounded: a write reaches the cache and the feed in one step, so an entry is wrong only for as long as
the message is on its way, or, where the feed has broken silently, for `silence_ms` at most.
"""

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from app.services.slots import Name, Slot

_NEVER = -(10**15)
_CHANCES = 8


class Entry(msgspec.Struct, gc=False):
    """One row. `everyone` and `member` are the finished answers for one unit, where they are remembered.

    The garbage collector leaves entries out (they hold no cycles): looking through a hundred thousand of them
    again and again would hold up the requests.
    """

    slot: Slot
    epoch: int
    refresh_at: int
    hits: int = 0
    everyone: bytes | None = None
    member: bytes | None = None


class NearCache:
    """At most `capacity` rows, and finished answers for half as many. `clock` gives ms that never run backwards."""

    def __init__(self, capacity: int, silence_ms: int, clock: Callable[[], int]) -> None:
        self._capacity, self._silence_ms, self._clock = capacity, silence_ms, clock
        self._answers_left = capacity // 2
        self._entries: OrderedDict[Name, Entry] = OrderedDict()  # its first entry is found at once
        # Versions told lately: a slot that was read before its invalidation arrived is not kept after it.
        # Two generations, swapped by time, bound their number.
        self._told: dict[Name, int] = {}
        self._told_before: dict[Name, int] = {}
        self._swapped_at = clock()
        self._heard_at = _NEVER
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def trusted(self) -> bool:
        """Whether the feed has been heard lately."""
        return self._clock() - self._heard_at <= self._silence_ms

    def fresh(self, name: Name, now: int) -> Entry | None:
        """The row, where it may be served as it is; `now` is in ms since 1970."""
        entry = self._entries.get(name)
        if entry is None or entry.epoch != self._epoch or now >= entry.slot.fresh_until or not self.trusted:
            return None
        entry.hits += 1
        return entry

    def last_known(self, name: Name) -> Slot | None:
        """The row however old it is, for when nothing newer can be had."""
        entry = self._entries.get(name)
        return None if entry is None else entry.slot

    def put(self, name: Name, slot: Slot, refresh_at: int, epoch: int) -> None:
        """Keep a slot that was read in `epoch`, unless something newer was told or the feed broke meanwhile.
        From `refresh_at` (ms since 1970) on it should be refreshed although it is still fresh."""
        if not self._capacity or epoch != self._epoch or not self.trusted or self._newer_told(name, slot.version):
            return
        if len(self._entries) >= self._capacity and name not in self._entries:
            self._evict()
        self._forget(name)
        self._entries[name] = Entry(slot, epoch, refresh_at)

    def remember(self, entry: Entry, is_member: bool, answer: bytes) -> None:
        """Keep a finished answer for one unit of a row that is here, while there is room for it."""
        if not self._answers_left:
            return
        self._answers_left -= 1
        if is_member:
            entry.member = answer
        else:
            entry.everyone = answer

    @property
    def epoch(self) -> int:
        """Rises whenever what was kept before may have missed an invalidation."""
        return self._epoch

    def heard(self, sent_at: int) -> None:
        """The feed has brought everything up to `sent_at` (by `clock`). After a silence everything kept before
        it is distrusted."""
        if not self.trusted:
            self._epoch += 1
        self._heard_at = max(self._heard_at, sent_at)

    def lost(self) -> None:
        """The feed has broken, and may miss anything until it is heard again."""
        self._epoch += 1
        self._heard_at = _NEVER

    def told(self, name: Name, version: int) -> None:
        """A writer has stored `version` of this row."""
        now = self._clock()
        if now - self._swapped_at > 10_000:
            self._told_before, self._told, self._swapped_at = self._told, {}, now
        self._told[name] = max(version, self._told.get(name, version))
        entry = self._entries.get(name)
        if entry is not None and entry.slot.version <= version:
            self._forget(name)

    def clear(self) -> None:
        """Forget everything, also what would be served stale."""
        self._epoch += 1
        self._entries.clear()
        self._answers_left = self._capacity // 2

    def hits(self) -> list[tuple[Name, Entry]]:
        """Every entry as it is now; its `hits` say how often it was asked for lately."""
        return list(self._entries.items())

    def _newer_told(self, name: Name, version: int) -> bool:
        told = self._told.get(name, self._told_before.get(name))
        return told is not None and told > version

    def _forget(self, name: Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._answers_left += (entry.everyone is not None) + (entry.member is not None)

    def _evict(self) -> None:
        """Second chance: the oldest entry goes, unless it was asked for since it was last looked at. Only a few
        are looked at: where all are in demand, going on would hold up the requests to find none."""
        for _ in range(_CHANCES):
            name, entry = next(iter(self._entries.items()))
            if entry.hits < 2:
                break
            entry.hits //= 2
            self._entries.move_to_end(name)
        self._forget(next(iter(self._entries)))
