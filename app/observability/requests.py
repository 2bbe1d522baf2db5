"""What every request leaves behind: a duration, an access record, and what is kept of it. Noted at once, written a
little later.

Writing a line and moving a histogram costs more than answering from memory, so requests only append to a buffer,
and a thread takes what has gathered. A process that is killed loses what it had not written.
"""

import json
import logging
import os
import select
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from app.observability import metrics
from app.observability.tracing import RequestTrace
from app.pipeline.buffer import Buffer, WhenFull

INTERVAL_S, GRACE_S = 0.04, 0.01
"""How long a request waits to be taken at most. After that a keeper has the grace to bring it to where it survives this
process: so 50 ms of records are all that may be lost of one that is killed."""

CAPACITY = 65_536
"""Requests that wait to be taken, which is seconds of them; more are dropped and counted, as if the thread had died."""

_PATIENCE_S = 1.0
"""How long the end waits for a reader of the log that does not read."""

_PIECE = select.PIPE_BUF
"""A pipe takes so many bytes as one, whoever else writes to it, and, if it takes any now, without waiting."""

_access = logging.getLogger("access")
_json = json.JSONEncoder(separators=(",", ":")).encode

MAX_BACKLOG = 4_000_000
"""Bytes of access records that wait for a log that does not take them; more are dropped, and counted."""


class Kind(NamedTuple):
    """What requests are counted by."""

    method: str
    route: str
    status: int


class Note(NamedTuple):
    """One answered request, as it is taken from the buffer; what is in it is a plain tuple."""

    number: int
    """Of this process' requests, from 1 on."""
    ended: float
    """As `time.perf_counter` has it."""
    kind: Kind
    seconds: float
    request: RequestTrace
    at_hand: int
    """Quotes that were answered from this process' memory, without their endpoint."""
    sent_bytes: int
    key_id: str
    client: tuple[str, int] | None
    """Who is at the other end of the connection."""
    forwarded: bytes | None
    """X-Forwarded-For, as it came."""
    user_id: bytes | None
    """X-User-ID, as it came."""


class Keeper(Protocol):
    """Whoever keeps what requests leave behind, beside this log."""

    numbers: "memoryview[int]"
    """Its first item is raised with each request, before anything else."""

    def start(self) -> None: ...
    def take(self, notes: Sequence[Note]) -> None: ...
    def waits(self) -> bool:
        """Whether anything that was taken has not left yet."""
        ...

    def hurry(self) -> None:
        """The grace has passed: what has not left is to be made safe now."""
        ...

    def stop(self) -> None: ...


class RequestLog:
    def __init__(self, process: str, keeper: Keeper | None = None, wake: threading.Event | None = None) -> None:
        """Access records are lines of the level info; where that is not written, durations are counted all the same.
        Who sets `wake` does not want to wait for the next interval."""
        self._process, self._keeper = process, keeper
        self._numbers = keeper.numbers if keeper is not None else memoryview(bytearray(8)).cast("Q")
        self._gathered = Buffer[Any](CAPACITY, WhenFull.DROP_NEWEST)
        self._backlog: list[bytes] = []
        self._stopping, self._wake = False, wake or threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def note(
        self,
        ended: float,
        kind: Kind,
        seconds: float,
        request: RequestTrace,
        at_hand: int = 0,
        sent_bytes: int = 0,
        key_id: str = "",
        client: tuple[str, int] | None = None,
        forwarded: bytes | None = None,
        user_id: bytes | None = None,
    ) -> int:
        """A request was answered, as `Note` says it; its number. For the one thread that answers."""
        self._numbers[0] = number = self._numbers[0] + 1
        self._gathered.put(
            (number, ended, kind, seconds, request, at_hand, sent_bytes, key_id, client, forwarded, user_id)
        )
        return number

    def start(self) -> None:
        if self._keeper is not None:
            self._keeper.start()
        self._thread.start()

    def stop(self) -> None:
        """Write the rest."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        if self._keeper is not None:
            self._keeper.stop()

    def _run(self) -> None:
        rest_s = INTERVAL_S
        while not self._stopping:
            self._wake.wait(rest_s)
            self._wake.clear()
            self._take()
            self._write(0)
            rest_s = INTERVAL_S
            if self._keeper is not None and self._keeper.waits():
                self._wake.wait(GRACE_S)
                self._keeper.hurry()
                rest_s -= GRACE_S
        self._take()
        self._write(_PATIENCE_S)

    def gathered(self, count: int) -> list[Note]:
        """Take the oldest that nobody has taken yet."""
        return self._gathered.take(count)

    def _take(self) -> None:
        """Count what has gathered, and make its lines."""
        records = self.gathered(CAPACITY)
        if self._keeper is not None:
            self._keeper.take(records)
        self._count(records)

    def _count(self, records: Sequence[Note]) -> None:
        by_kind: defaultdict[Kind, list[Note]] = defaultdict(list)
        for record in records:
            by_kind[record[2]].append(record)
        for kind, same in by_kind.items():
            method = kind.method if kind.method in metrics.METHODS else "other"
            duration = metrics.http_request_duration.labels(method, kind.route, str(kind.status))
            metrics.observe_many(duration, [record[3] for record in same])
            if _access.isEnabledFor(logging.INFO):
                self._backlog += self._pieces(kind, same)
        if at_hand := sum(record[5] for record in records):
            metrics.quotes.labels("near_cache").inc(at_hand)

    def _pieces(self, kind: Kind, records: list[Note]) -> list[bytes]:
        """The records' lines, as many in a piece as one write takes whole."""
        began = time.time() - time.perf_counter()
        fields = _json(kind._asdict())[1:-1]
        rest = _json({"process": self._process, "event": "request", "level": "info", "logger": "access"})[1:]
        lines = []
        second, shown = 0, ""
        for _, ended, _, seconds, request, _, _, key_id, *_ in records:
            at = began + ended
            if int(at) != second:
                second = int(at)
                shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            lines.append(
                f'{{"timestamp":"{shown}.{int((at - second) * 1e6):06}Z",{fields},"ms":{seconds * 1000:.3f},'
                f'"trace_id":"{request.trace_id}","span_id":"{request.span_id}","key_id":"{key_id}",{rest}\n'
            )
        fit = max(1, _PIECE // max(map(len, lines)))
        return ["".join(lines[start : start + fit]).encode() for start in range(0, len(lines), fit)]

    def _write(self, patience_s: float) -> None:
        """What the log takes within this time, and without anybody waiting for it longer."""
        log = sys.stderr.fileno()
        ready = select.poll()
        ready.register(log, select.POLLOUT)
        written = 0
        try:
            while written < len(self._backlog) and ready.poll(patience_s * 1000):
                os.write(log, self._backlog[written])
                written += 1
        except OSError:  # a full disk or a closed pipe: what was counted stays counted
            self._drop(len(self._backlog))
            return
        del self._backlog[:written]
        self._drop(len(self._backlog) - MAX_BACKLOG // _PIECE)

    def _drop(self, pieces: int) -> None:
        """The newest: what was before the trouble says more of it."""
        if pieces > 0:
            metrics.access_records_dropped.inc(sum(piece.count(b"\n") for piece in self._backlog[-pieces:]))
            del self._backlog[-pieces:]
