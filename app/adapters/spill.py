"""What a stream cannot take for the moment, in files on disk, until it can.

A process appends to a segment of its own and holds it by a lock that the kernel takes back however the process ends.
Whoever lives then *adopts* what the dead left: each segment once. Segments are read oldest first, and deleted once what
they hold was delivered. What was read and not confirmed is read again.

What was written survives the process. It survives the machine only where `sync` was called.
"""

import fcntl
import itertools
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct

import msgspec
import structlog

from app.domain.parcel import Parcel
from app.observability import metrics

_logger = structlog.get_logger(__name__)

_MAGIC = b"pricing spill 1\n"
_HEAD = Struct("<III")  # payload's bytes, its records, its CRC-32
_LARGEST = 64 << 20
_decode = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode
_encode = msgspec.msgpack.Encoder().encode

SEGMENT_BYTES = 8 << 20
MEASURED_FOR_S = 1.0
"""How long a process believes what it has measured the folder to hold; it adds what it writes itself."""


class _Segment:
    """A file that this process holds. `records` are those that were not delivered yet."""

    def __init__(self, path: Path, file: int, size: int, records: int, *, own: bool) -> None:
        self.path, self.file, self.size, self.records, self.own = path, file, size, records, own
        self.read_to = len(_MAGIC)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.file)


class Spill:
    """The segments of one folder that this process holds. Two threads may use it, one to append and one to read.

    The limit is on the folder: all processes together. Each knows what the others wrote a second ago, so it may be
    exceeded by what they write in that time."""

    def __init__(self, folder: Path, name: str, limit_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder, self._name, self._limit, self._segment_bytes = folder, name, limit_bytes, segment_bytes
        self._numbers = itertools.count()
        self._segments: deque[_Segment] = deque()
        self._held = 0
        self._measured_at = -MEASURED_FOR_S
        self._fails = False
        self._lock = threading.Lock()

    @property
    def records(self) -> int:
        """How many wait in the segments that this process holds."""
        return sum(segment.records for segment in list(self._segments))

    def append(self, parcels: Sequence[Parcel], *, sync: bool = False) -> int:
        """How many were written, from the first on; the others do not fit, or the disk does not take them. With `sync`
        they are on the disk itself when this returns."""
        with self._lock:
            written = 0
            for parcel in parcels:
                try:
                    if not self._write(parcel):
                        break
                except OSError as error:
                    if not self._fails:
                        _logger.error("the spill cannot be written", folder=str(self._folder), error=str(error))
                    self._fails = True
                    break
                self._fails = False
                written += 1
            if sync and written:
                try:
                    os.fsync(self._segments[-1].file)
                except OSError as error:  # written it is; that it survives the machine, nobody can promise
                    _logger.error("the spill cannot be synced", folder=str(self._folder), error=str(error))
            return written

    def oldest(self, count: int) -> list[Parcel]:
        """The oldest that were not confirmed, at most `count`; all of one segment."""
        with self._lock:
            while self._segments:
                segment = self._segments[0]
                frames = _frames(segment.file, segment.read_to, segment.size)
                sound = ((records, payload) for _, records, payload in frames if payload is not None)
                parcels = [Parcel(_decode(payload), records) for records, payload in itertools.islice(sound, count)]
                if parcels:
                    return parcels
                self._report_damage(segment, segment.records)
                self._segments.popleft().drop()
            return []

    def confirm(self, count: int) -> None:
        """The oldest so many were delivered."""
        with self._lock:
            segment = self._segments[0]
            for end, records, payload in _frames(segment.file, segment.read_to, segment.size):
                segment.read_to = end
                segment.records -= records
                if payload is None:
                    self._report_damage(segment, records)
                else:
                    count -= 1
                if not count:
                    break
            if segment.read_to == segment.size:
                self._segments.popleft().drop()
                self._measured_at = -MEASURED_FOR_S

    def adopt(self) -> int:
        """Take over the segments of processes that have died; how many records are in them."""
        adopted = 0
        with self._lock:
            mine = {segment.path for segment in self._segments}
            for path in sorted(self._folder.glob("*.spill"), reverse=True):
                if path in mine:
                    continue
                segment = _adopt(path)
                if segment is not None:
                    self._segments.appendleft(segment)
                    adopted += segment.records
        return adopted

    def folder_bytes(self) -> int:
        """What all processes have spilled."""
        held = 0
        for path in self._folder.glob("*.spill"):
            with suppress(FileNotFoundError):  # delivered in this moment
                held += path.stat().st_size
        return held

    def close(self) -> None:
        """Leave what is there to whoever adopts it."""
        with self._lock:
            for segment in self._segments:
                os.close(segment.file)
            self._segments.clear()

    def _write(self, parcel: Parcel) -> bool:
        payload = _encode(parcel.fields)
        data = _HEAD.pack(len(payload), parcel.records, zlib.crc32(payload)) + payload
        if self._measured() + len(data) > self._limit:
            return False
        segment = self._segments[-1] if self._segments else None
        if segment is None or not segment.own or segment.size >= self._segment_bytes:
            segment = self._begin()
        try:
            if os.pwrite(segment.file, data, segment.size) < len(data):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(segment.file, segment.size)
            raise
        segment.size += len(data)
        segment.records += parcel.records
        self._held += len(data)
        return True

    def _begin(self) -> _Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = self._folder / f"{self._name}-{next(self._numbers):06}.spill"
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:  # left by a process whose last word is said under its name
                continue
            if _lock(file):
                break
            os.close(file)  # somebody took it for a dead process' in this very moment, and will find it empty
        os.pwrite(file, _MAGIC, 0)
        self._held += len(_MAGIC)
        segment = _Segment(path, file, len(_MAGIC), 0, own=True)
        self._segments.append(segment)
        return segment

    def _measured(self) -> int:
        if time.monotonic() - self._measured_at >= MEASURED_FOR_S:
            self._held, self._measured_at = self.folder_bytes(), time.monotonic()
        return self._held

    def _report_damage(self, segment: _Segment, records: int) -> None:
        if records:
            metrics.telemetry_dropped.labels("damaged").inc(records)
            _logger.error("spilled records are damaged", file=str(segment.path), records=records)


def _adopt(path: Path) -> _Segment | None:
    """The segment, if nobody who lives has it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        _logger.error("a spilled segment cannot be taken over", file=str(path), error=str(error))
        return None
    if not _lock(file) or os.fstat(file).st_nlink == 0:  # taken, or delivered by another in this moment
        os.close(file)
        return None
    size = os.fstat(file).st_size
    if os.pread(file, len(_MAGIC), 0) != _MAGIC:
        _Segment(path, file, size, 0, own=False).drop()
        return None
    frames = [(end, count) for end, count, _ in _frames(file, len(_MAGIC), size)]
    end, records = frames[-1][0] if frames else len(_MAGIC), sum(count for _, count in frames)
    if end < size:  # its process died while it wrote: nobody was told that this was kept
        _logger.warning("the end of a spilled segment is missing", file=str(path), bytes=size - end)
    return _Segment(path, file, end, records, own=False)


def _frames(file: int, start: int, size: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Where each ends, how many records it has, and what it holds: None where that is not what was written."""
    while start + _HEAD.size <= size:
        length, records, checksum = _HEAD.unpack(os.pread(file, _HEAD.size, start))
        end = start + _HEAD.size + length
        if end > size or length > _LARGEST:
            return
        payload = os.pread(file, length, start + _HEAD.size)
        yield end, records, payload if zlib.crc32(payload) == checksum else None
        start = end


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
