"""The near cache: rows in this process, trusted only while the invalidation feed is heard.

Staleness is bounded: a write reaches the cache and the feed in one step, so an entry is wrong only for as long as
the message is on its way, or, where the feed has broken silently, for `silence_ms` at most.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import msgspec

from app.domain.sheet import PriceSheet, decode_sheet, encode_sheet
from app.services.slots import UNKNOWN, Name, Slot, place

_NEVER = -(10**15)
_CHANCES = 8


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a slot: its times, and the sheet, or why there is none."""

    checked_at: int
    fresh_until: int
    sheet: PriceSheet | str


# Half as large as JSON, and quicker to read.
_pack_into = msgspec.msgpack.Encoder().encode_into
_packed = bytearray()
_unpack = msgspec.msgpack.Decoder(_Kept).decode


class Entry(msgspec.Struct, gc=False):
    """One row. From `refresh_at` on it should be refreshed although it is still fresh.

    Made to be small, for there are a hundred thousand, and kept from the garbage collector (there are no cycles):
    looking through them again and again would hold up the requests.
    """

    kept: bytes
    version: int
    refresh_at: int
    epoch: int
    hits: int = 0

    @property
    def sheet(self) -> PriceSheet | str:
        """The sheet, or the reason why there is none."""
        return _unpack(self.kept).sheet

    def newer_than(self, slot: Slot) -> bool:
        """Whether a slot of this row is known to be older. That there is no sheet has no version of its own: what was
        checked later counts."""
        if slot.unknown:
            return _unpack(self.kept).checked_at > slot.checked_at
        return self.version > slot.version

    @property
    def slot(self) -> Slot:
        kept = _unpack(self.kept)
        payload = kept.sheet.encode() if isinstance(kept.sheet, str) else encode_sheet(kept.sheet)
        return Slot(self.version, kept.checked_at, kept.fresh_until, payload)


class NearCache:
    """At most `capacity` rows. `clock` gives ms that never run backwards."""

    def __init__(self, capacity: int, silence_ms: int, clock: Callable[[], int]) -> None:
        self._capacity, self._silence_ms, self._clock = capacity, silence_ms, clock
        # Each has a seat, also who was told to go (None) and will soon be back; when all are taken, a hand goes round
        # to find one for whoever comes.
        self._entries: dict[str, Entry | None] = {}
        self._seats: list[str] = []
        self._hand = 0
        self._gone = 0
        # Rows that are being read just now, by how many, and what was told of them meanwhile: a slot that was read
        # before its invalidation arrived is not kept after it.
        self._reading: Counter[str] = Counter()
        self._told: dict[str, int] = {}
        self._heard_at = _NEVER
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._entries) - self._gone

    @property
    def trusted(self) -> bool:
        """Whether the feed has been heard lately."""
        return self._clock() - self._heard_at <= self._silence_ms

    def at_hand(self, where: str, now: int) -> PriceSheet | None:
        """The sheet at this `place`, if nothing has to be done about it; `now` is in ms since 1970. Only while
        `trusted`: whoever asks for many looks once."""
        entry = self._entries.get(where)
        if entry is None or entry.epoch != self._epoch or now >= entry.refresh_at or entry.version == UNKNOWN:
            return None
        entry.hits += 1
        return _unpack(entry.kept).sheet  # type: ignore[return-value]  # known, so no reason why not

    def fresh(self, name: Name, now: int) -> Entry | None:
        """The row, where it may be served as it is; `now` is in ms since 1970."""
        entry = self._entries.get(place(name))
        if entry is None or entry.epoch != self._epoch or not self.trusted:
            return None
        if now >= entry.refresh_at and now >= entry.slot.fresh_until:
            return None
        entry.hits += 1
        return entry

    def last_known(self, name: Name) -> Slot | None:
        """The row however old it is, for when nothing newer can be had."""
        entry = self._entries.get(place(name))
        return None if entry is None else entry.slot

    @contextmanager
    def reading(self, names: Sequence[Name]) -> Iterator[None]:
        """Around everything that reads these rows from the shared cache and then `put`s them."""
        places = [place(name) for name in names]
        self._reading.update(places)
        try:
            yield
        finally:
            for where in places:
                if self._reading[where] > 1:
                    self._reading[where] -= 1
                else:
                    del self._reading[where]
                    self._told.pop(where, None)

    def put(self, name: Name, slot: Slot, refresh_at: int, epoch: int) -> None:
        """Keep a slot that was read in `epoch`, unless something newer was told or kept, or the feed broke, meanwhile.
        From `refresh_at` (ms since 1970) on it should be refreshed although it is still fresh."""
        where = place(name)
        if not self._capacity or epoch != self._epoch or not self.trusted or self._told.get(where, -2) > slot.version:
            return
        if (entry := self._entries.get(where)) is not None and entry.epoch == epoch and entry.newer_than(slot):
            return  # answers may overtake each other
        sheet = slot.payload.decode() if slot.unknown else decode_sheet(slot.payload)
        _pack_into(_Kept(slot.checked_at, slot.fresh_until, sheet), _packed)
        if where not in self._entries:
            self._take_seat(where)
        elif self._entries[where] is None:
            self._gone -= 1
        refresh_at = min(refresh_at, slot.fresh_until) // 1000 * 1000  # in whole seconds, which many share
        # A copy is just as large as it has to be; what an encoder makes has room to spare.
        self._entries[where] = Entry(bytes(_packed), slot.version, _shared(refresh_at), epoch)

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

    def concerned(self, where: str) -> bool:
        """Whether it matters here what is told of this `place`."""
        return where in self._entries or where in self._reading

    def told(self, name: Name, version: int) -> None:
        """A writer has stored `version` of this row."""
        where = place(name)
        if where in self._reading:
            self._told[where] = max(version, self._told.get(where, version))
        entry = self._entries.get(where)
        if entry is not None and entry.version <= version:
            self._entries[where] = None
            self._gone += 1

    def clear(self) -> None:
        """Forget everything, also what would be served stale."""
        self._epoch += 1
        self._entries.clear()
        self._seats.clear()
        self._hand = self._gone = 0

    def hits(self, size: int) -> Iterator[list[tuple[str, Entry]]]:
        """The entries by their places, some `size` at a time, for there are many, and others have their turn in
        between; `hits` of each say how often it was asked for lately."""
        for start in range(0, self._capacity, size):
            seats = self._seats[start : start + size]
            yield [(where, entry) for where in seats if (entry := self._entries.get(where)) is not None]
            if len(seats) < size:
                return

    def _take_seat(self, where: str) -> None:
        """Second chance: who sits where the hand is goes, unless it was asked for since it was last looked at. Only
        a few are looked at: where all are in demand, going on would hold up the requests to find none."""
        if len(self._seats) < self._capacity:
            self._seats.append(where)
            return
        for _ in range(_CHANCES):
            entry = self._entries[self._seats[self._hand]]
            if entry is None or entry.hits < 2:
                break
            entry.hits //= 2
            self._hand = (self._hand + 1) % self._capacity
        self._gone -= self._entries.pop(self._seats[self._hand]) is None
        self._seats[self._hand] = where
        self._hand = (self._hand + 1) % self._capacity


@lru_cache(8192)
def _shared(number: int) -> int:
    """The same number, once for all who have it: each would be 32 bytes."""
    return number
