"""What every request leaves behind: a duration, an access record, and what is kept of it. Noted at once, written a
little later.

Writing a line and moving a histogram costs more than answering from memory, so requests only append to a buffer,
and a thread takes what has gathered. A process that is killed loses what it had not written.
"""

import logging
import os
import select
import stat
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from app.domain.telemetry import MOST_RECORDS
from app.observability import metrics
from app.observability.access_records import access_lines
from app.observability.notes import Kind, Note, Noted, row
from app.pipeline.batcher import Batcher, Limits
from app.pipeline.buffer import Buffer, WhenFull

INTERVAL_S, GRACE_S = 0.04, 0.01
"""How long a request waits to be taken at most. After that a keeper has the grace to bring it to where it survives this
process: so 50 ms of records are all that may be lost of one that is killed."""

CAPACITY = 65_536
"""Requests that wait to be taken, which is seconds of them; more are dropped and counted, as if the thread had died."""

_PATIENCE_S = 1.0
"""How long the end waits for a reader of the log that does not read."""

_PIECE, _WHOLE = select.PIPE_BUF, 1 << 20
"""A pipe takes so many bytes as one, whoever else writes to it, and, if it takes any now, without waiting; a file any
number. Each write gives up Python's lock, and asks who answers to give it back."""

_SAMPLED, _END = b"1\n"
_logger, _access = logging.getLogger(__name__), logging.getLogger("access")
MAX_BACKLOG = 4_000_000
"""Bytes of access records that wait for a log that does not take them; more are dropped, and counted."""


class Keeper(Protocol):
    """Whoever keeps what requests leave behind, beside this log."""

    numbers: "memoryview[int]"
    """Its first item is raised with each request, before anything else."""

    def start(self) -> None: ...
    def take(self, batches: Sequence[Noted]) -> None: ...
    def waits(self) -> bool:
        """Whether anything was taken that nobody has begun to send."""
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
        self._gathered = Buffer[Note](CAPACITY, WhenFull.DROP_NEWEST)
        self._batcher = Batcher[Note](Limits(MOST_RECORDS), lambda: 0)
        self._backlog, self._torn = bytearray(), False
        self._piece = _PIECE
        self._stopping, self._wake = False, wake or threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def note(
        self,
        ended: float,
        kind: Kind,
        seconds: float,
        traceparent: bytes,
        at_hand: int = 0,
        sent_bytes: int = 0,
        key_id: str = "",
        client: tuple[str, int] | None = None,
        forwarded: bytes | None = None,
        user_id: bytes | None = None,
    ) -> int:
        """A request was answered, as `ROW` and `Said` have it, with this traceparent (W3C Trace Context, version 00);
        its number. For the one thread that answers."""
        self._numbers[0] = number = self._numbers[0] + 1
        said = (kind, "" if client is None else client[0], key_id, forwarded, user_id, traceparent[-1] == _SAMPLED)
        self._gathered.put((row(number, ended, seconds, sent_bytes, at_hand, traceparent), said))
        return number

    def start(self) -> None:
        """Write to where standard error leads now."""
        self._piece = _WHOLE if stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode) else _PIECE
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

    def gathered(self) -> list[Noted]:
        """Take what nobody has taken yet, in batches."""
        batches = self._batcher.add(self._gathered.take(CAPACITY))
        return [Noted.of(batch) for batch in (*batches, self._batcher.flush()) if batch]

    def _take(self) -> None:
        """Count what has gathered, and make its lines."""
        batches = self.gathered()
        if self._keeper is not None:
            self._keeper.take(batches)
        for noted in batches:
            try:
                self._count(noted)
            except Exception:  # a defect; but what comes is to be counted, and kept, all the same
                _logger.exception("requests cannot be counted")

    def _count(self, noted: Noted) -> None:
        by_kind: defaultdict[Kind, list[int]] = defaultdict(list)
        for place, (kind, *_) in enumerate(noted.said):
            by_kind[kind].append(place)
        for kind, places in by_kind.items():
            same = noted if len(by_kind) == 1 else noted.only(np.isin(noted.said_of, places))
            method = kind.method if kind.method in metrics.METHODS else "other"
            duration = metrics.http_request_duration.labels(method, kind.route, str(kind.status))
            metrics.observe_many(duration, same.rows["seconds"])
            if _access.isEnabledFor(logging.INFO):
                self._backlog += access_lines(same, kind, self._process)
        if at_hand := int(noted.rows["at_hand"].sum()):
            metrics.quotes.labels("near_cache").inc(at_hand)

    def _write(self, patience_s: float) -> None:
        """What the log takes within this time, without anybody waiting for it longer: whole lines."""
        log, lines, start = sys.stderr.fileno(), self._backlog, 0
        ready = select.poll()
        ready.register(log, select.POLLOUT)
        try:
            while start < len(lines) and ready.poll(patience_s * 1000):
                if self._torn:  # the next line is to be one of its own
                    os.write(log, b"\n")
                    self._torn = False
                end = lines.rfind(b"\n", start, start + self._piece) + 1 or lines.index(b"\n", start) + 1
                start += os.write(log, lines[start:end])
        except OSError:  # a full disk or a closed pipe: what was counted stays counted
            self._torn = lines[start - 1] != _END if start else self._torn
            self._drop(start)
            lines.clear()
            return
        del lines[:start]
        if len(lines) > MAX_BACKLOG:
            self._drop(lines.rfind(b"\n", 0, MAX_BACKLOG) + 1)

    def _drop(self, start: int) -> None:
        """From here on, the newest: what was before the trouble says more of it."""
        metrics.access_records_dropped.inc(self._backlog.count(b"\n", start))
        del self._backlog[start:]
