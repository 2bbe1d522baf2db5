"""The near cache: rows in this process, trusted only while the invalidation feed is heard.

Staleness is bounded: a write reaches the cache and the feed in one step, so an entry is wrong only for as long as
the message is on its way, or, where the feed has broken silently, for `silence_ms` at most.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from app.domain.columns import Segment
from app.domain.sheet import PriceSheet, decode_sheet, encode_sheet
from app.services.slots import UNKNOWN, Name, Slot, place

_NEVER = -(10**15)
_CHANCES = 8

_SHORT_LIFE_MS = 10_000
"""To whom a second matters: cut to whole ones, a life of one could be over as it begins."""


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a slot: the sheet without the names, or why there is none, and its times."""

    sheet: PriceSheet | str
    checked_at: int
    fresh_until: int

    @property
    def version(self) -> int:
        return UNKNOWN if isinstance(self.sheet, str) else self.sheet.version


class _OfEveryone(PriceSheet, array_like=True, frozen=True, gc=False):
    """A sheet that is asked for one segment: a third of the work is to make what the other one pays."""

    member: msgspec.Raw  # type: ignore[assignment]


class _OfMember(PriceSheet, array_like=True, frozen=True, gc=False):
    everyone: msgspec.Raw  # type: ignore[assignment]


class _KeptOfEveryone(msgspec.Struct, array_like=True, gc=False):
    """Of what is kept the beginning; the times are passed over."""

    sheet: _OfEveryone | str


class _KeptOfMember(msgspec.Struct, array_like=True, gc=False):
    sheet: _OfMember | str


# Half as large as JSON, and quicker to read.
_pack_into = msgspec.msgpack.Encoder().encode_into
_packed = bytearray()
_unpack = msgspec.msgpack.Decoder(_Kept).decode
# In the order of the segments, for to find one in a dict asks its name first.
_unpack_of = (msgspec.msgpack.Decoder(_KeptOfEveryone).decode, msgspec.msgpack.Decoder(_KeptOfMember).decode)


class Entry(msgspec.Struct, gc=False):
    """One row. From `refresh_at` on it should be refreshed although it is still fresh.

    Made to be small, for there are a hundred thousand, and kept from the garbage collector (there are no cycles):
    looking through them again and again would hold up the requests.
    """

    kept: bytes
    refresh_at: int
    epoch: int
    hits: int = 0

    @property
    def version(self) -> int:
        return _unpack(self.kept).version

    @property
    def fresh_until(self) -> int:
        return _unpack(self.kept).fresh_until

    def newer_than(self, slot: Slot) -> bool:
        """Whether a slot of this row is known to be older. That there is no sheet has no version of its own: what was
        checked later counts."""
        kept = _unpack(self.kept)
        return kept.checked_at > slot.checked_at if slot.unknown else kept.version > slot.version

    def slot(self, name: Name) -> Slot:
        """As it was put for the row of this name."""
        kept = _unpack(self.kept)
        if isinstance(kept.sheet, str):
            payload = kept.sheet.encode()
        else:
            payload = encode_sheet(replace(kept.sheet, product_id=name[0], location=name[1]))
        return Slot(kept.version, kept.checked_at, kept.fresh_until, payload)


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

    @property
    def keeps(self) -> bool:
        """Whether what is put here now is found here afterwards."""
        return self._capacity > 0 and self.trusted

    def at_hand(self, where: str, segment: Segment, now: int) -> PriceSheet | None:
        """The sheet at this `place`, if nothing has to be done about it, of which neither the names nor what another
        segment pays may be looked at; `now` is in ms since 1970. Only while `trusted`: whoever asks for many looks
        once."""
        entry = self._entries.get(where)
        if entry is None or entry.epoch != self._epoch or now >= entry.refresh_at:
            return None
        sheet = _unpack_of[segment](entry.kept).sheet
        if isinstance(sheet, str):
            return None
        entry.hits += 1
        return sheet

    def fresh(self, name: Name, now: int) -> Entry | None:
        """The row, where it may be served as it is; `now` is in ms since 1970."""
        entry = self._entries.get(place(name))
        if entry is None or entry.epoch != self._epoch or not self.trusted:
            return None
        if now >= entry.refresh_at and now >= entry.fresh_until:
            return None
        entry.hits += 1
        return entry

    def last_known(self, name: Name) -> Slot | None:
        """The row however old it is, for when nothing newer can be had."""
        entry = self._entries.get(place(name))
        return None if entry is None else entry.slot(name)

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
        sheet = slot.payload.decode() if slot.unknown else _nameless(slot.payload)
        _pack_into(_Kept(sheet, slot.checked_at, slot.fresh_until), _packed)
        if where not in self._entries:
            self._take_seat(where)
        elif self._entries[where] is None:
            self._gone -= 1
        refresh_at = min(refresh_at, slot.fresh_until)
        if refresh_at - slot.checked_at > _SHORT_LIFE_MS:
            refresh_at = refresh_at // 1000 * 1000  # in whole seconds, which many share
        # A copy is just as large as it has to be; what an encoder makes has room to spare.
        self._entries[where] = Entry(bytes(_packed), _shared(refresh_at), epoch)

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


def _nameless(payload: bytes) -> PriceSheet:
    """The sheet without what its place says already."""
    return replace(decode_sheet(payload), product_id="", location="")


@lru_cache(8192)
def _shared(number: int) -> int:
    """The same number, once for all who have it: each would be 32 bytes."""
    return number
