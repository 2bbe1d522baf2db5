"""The number of the last request that each API process has answered, where it outlives the process.

A byte more than its own memory: master and workers share it, so that the master can tell of a worker that was killed
how far it had come. Each process has the place of its number among all that the master ever started.
"""

import mmap
import secrets
import struct
import time
from typing import NamedTuple

_PLACES, _NUMBER, _NAME = 256, 8, 24
_SIZE = 128  # lines of their own: processes that raise theirs do not take them from each other
_shared = mmap.mmap(-1, _PLACES * _SIZE)
_place = 0


class End(NamedTuple):
    """A source, and the last number that it gave out."""

    source: str
    last: int


class Source:
    """A process that answers requests, and numbers them from 1 on."""

    def __init__(self, place: int | None = None) -> None:
        """At this process' place, or another for who has several."""
        start = (_place if place is None else place) % _PLACES * _SIZE
        self.name = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
        """When it began, and what tells it from others that began then: unique among all that ever answered."""
        self.numbers = memoryview(_shared)[start : start + _NUMBER].cast("Q")
        """Its first item is the last number."""
        self._label = memoryview(_shared)[start + _NUMBER : start + _NUMBER + _NAME]
        self.numbers[0] = 0
        self._label[:] = self.name.encode()

    def end(self) -> None:
        """It has told itself how far it came."""
        self._label[:] = bytes(_NAME)


def take_place(place: int) -> None:
    """For a new process: its number among those that its master ever started."""
    global _place
    _place = place


def left_by(place: int) -> End | None:
    """For the master, when the process with this number has ended: what it did not live to tell; once."""
    start = place % _PLACES * _SIZE
    number, label = struct.unpack_from(f"Q{_NAME}s", _shared, start)
    name = label.rstrip(b"\0").decode()
    _shared[start + _NUMBER : start + _NUMBER + _NAME] = bytes(_NAME)
    return End(name, number) if name else None
