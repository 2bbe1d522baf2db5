"""From a process into a stream; while that is away or full, onto the disk, and from there into the stream."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from app.domain.account import Account
from app.domain.parcel import Parcel
from app.errors import TRANSIENT, Unavailable
from app.pipeline.buffer import Buffer, WhenFull
from app.services.breaker import Breaker

_logger = structlog.get_logger(__name__)

SENT_AT_ONCE = 16
"""Parcels of one call, new ones or spilled ones: so new ones never wait for more than one call."""

WAITING = 64
"""Parcels that wait for their turn; what does not fit is spilled."""


class Stream(Protocol):
    def add(self, parcels: Sequence[Parcel]) -> None: ...


class Spill(Protocol):
    @property
    def records(self) -> int: ...
    def append(self, parcels: Sequence[Parcel], *, sync: bool = False) -> int: ...
    def oldest(self, count: int) -> list[Parcel]: ...
    def confirm(self, count: int) -> None: ...
    def adopt(self) -> int: ...


class Outlet:
    """One thread hands over by `put`; another one sends, in turns: `send` what is new, `replay` what was spilled.

    A little later the thread that puts calls `hurry`, and what still waits is spilled: so what a process that is killed
    can lose is bounded, however slow the stream is. A parcel whose sending was not answered is spilled and comes again:
    whoever reads the stream sees by its content that it did.

    `sent` is told what became of each parcel, True for the stream, False for the spill, None for dropped.
    `breaker` is this process' own.
    """

    def __init__(
        self, stream: Stream, spill: Spill, breaker: Breaker, sent: Callable[[Parcel, bool | None], object]
    ) -> None:
        self._stream, self._spill, self._breaker, self._sent = stream, spill, breaker, sent
        self._overflow: list[Parcel] = []
        self._waiting = Buffer[Parcel](WAITING, WhenFull.SPILL, self._overflow.extend)
        self._books = threading.Lock()  # never held while anything is sent or written
        self._in_hand = 0
        self._accepted = self._delivered = self._spilled = self._dropped = 0
        self.replayed = 0
        """Records that went from the spill into the stream."""

    def put(self, parcels: Sequence[Parcel]) -> None:
        """From now on they are on their way."""
        with self._books:
            for parcel in parcels:
                self._accepted += parcel.records
                self._waiting.put(parcel)
            overflow = self._overflow.copy()
            self._overflow.clear()
            self._in_hand += sum(parcel.records for parcel in overflow)
        if overflow:
            self._keep(overflow)

    @property
    def waits(self) -> bool:
        """Whether anything was put that nobody has begun to send."""
        return len(self._waiting) > 0

    def hurry(self) -> None:
        """Spill what still waits."""
        with self._books:
            late = self._take(WAITING)
        if late:
            self._keep(late)

    def put_and_wait(self, parcels: Sequence[Parcel]) -> None:
        """Once this returns the stream has them, or the disk itself. While the stream is away it is `replay` that finds
        out when it is back, and nobody waits for that here."""
        with self._books:
            self._accepted += sum(parcel.records for parcel in parcels)
            self._in_hand += sum(parcel.records for parcel in parcels)
        if parcels and not (self._breaker.closed and self._try(parcels)):
            self._keep(parcels, sync=True)

    def send(self) -> bool:
        """The next ones that wait, to the stream or the spill; whether there were any."""
        with self._books:
            parcels = self._take(SENT_AT_ONCE)
        if parcels and not self._try(parcels):
            self._keep(parcels)
        return bool(parcels)

    def replay(self) -> bool:
        """A few of those that were spilled, into the stream; whether there may be more that it would take."""
        parcels = self._spill.oldest(SENT_AT_ONCE)
        if not parcels or not self._try(parcels, told=False):
            return False
        self._spill.confirm(len(parcels))
        self.replayed += sum(parcel.records for parcel in parcels)
        return True

    def close(self, last: Parcel) -> bool:
        """Spill what still waits, and say a last word; whether it was kept. Nobody may send any more."""
        self.hurry()
        return self._try([last], told=False) or self._spill.append([last]) == 1

    def account(self) -> Account:
        """Of records. What was spilled has been delivered, to the spill."""
        with self._books:
            waiting = self._in_hand + sum(parcel.records for parcel in self._waiting.items())
            return Account(self._accepted, self._delivered + self._spilled, dropped=self._dropped, pending=waiting)

    def _take(self, count: int) -> list[Parcel]:
        parcels = self._waiting.take(count)
        self._in_hand += sum(parcel.records for parcel in parcels)
        return parcels

    def _try(self, parcels: Sequence[Parcel], *, told: bool = True) -> bool:
        try:
            self._breaker.check()
        except Unavailable:
            return False
        try:
            self._stream.add(parcels)
        except Exception as error:  # whatever it is: nothing of it may end the thread, or be lost
            self._breaker.failed()
            if not isinstance(error, TRANSIENT):
                _logger.error("a stream refuses what it is to take", exc_info=error)
            return False
        self._breaker.succeeded()
        for parcel in parcels if told else ():
            self._count(parcel, True)
        return True

    def _keep(self, parcels: Sequence[Parcel], *, sync: bool = False) -> None:
        """On disk; where there is no room either, the newest are dropped: what is there already stays whole, and what
        is missing is one stretch."""
        kept = self._spill.append(parcels, sync=sync)
        for n, parcel in enumerate(parcels):
            self._count(parcel, False if n < kept else None)

    def _count(self, parcel: Parcel, fate: bool | None) -> None:
        with self._books:
            self._in_hand -= parcel.records
            self._delivered += parcel.records if fate else 0
            self._spilled += parcel.records if fate is False else 0
            self._dropped += parcel.records if fate is None else 0
        self._sent(parcel, fate)
