"""What every request leaves behind: a duration and an access record. Noted at once, written a little later.

Writing a line and moving a histogram costs more than answering from memory, so requests only append to a list,
and a thread writes what has gathered. A process that is killed loses what it had not written.
"""

import json
import logging
import os
import select
import sys
import threading
import time
from collections import defaultdict
from typing import NamedTuple

from app.observability import metrics
from app.observability.tracing import RequestTrace

_INTERVAL_S = 0.05
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


Record = tuple[float, Kind, float, RequestTrace, int]
"""One answered request: when it ended (as `time.perf_counter` has it), its kind, its duration in seconds, its
trace, and how many quotes were answered from this process' memory, without their endpoint."""


class RequestLog:
    def __init__(self, process: str) -> None:
        """Access records are lines of the level info; where that is not written, durations are counted all the same."""
        self._process = process
        self._gathered: list[Record] = []
        self.note = self._gathered.append
        self._backlog: list[bytes] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write the rest."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            self._take()
            self._write(0)
        self._take()
        self._write(_PATIENCE_S)

    def _take(self) -> None:
        """Count what has gathered, and make its lines."""
        count = len(self._gathered)  # only this thread removes, and only from the front
        records = self._gathered[:count]
        del self._gathered[:count]
        by_kind: defaultdict[Kind, list[Record]] = defaultdict(list)
        for record in records:
            by_kind[record[1]].append(record)
        for kind, same in by_kind.items():
            method = kind.method if kind.method in metrics.METHODS else "other"
            duration = metrics.http_request_duration.labels(method, kind.route, str(kind.status))
            metrics.observe_many(duration, [record[2] for record in same])
            if _access.isEnabledFor(logging.INFO):
                self._backlog += self._pieces(kind, same)
        if at_hand := sum(record[4] for record in records):
            metrics.quotes.labels("near_cache").inc(at_hand)

    def _pieces(self, kind: Kind, records: list[Record]) -> list[bytes]:
        """The records' lines, as many in a piece as one write takes whole."""
        began = time.time() - time.perf_counter()
        fields = _json(kind._asdict())[1:-1]
        rest = _json({"process": self._process, "event": "request", "level": "info", "logger": "access"})[1:]
        lines = []
        second, shown = 0, ""
        for ended, _, seconds, request, _ in records:
            at = began + ended
            if int(at) != second:
                second = int(at)
                shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            lines.append(
                f'{{"timestamp":"{shown}.{int((at - second) * 1e6):06}Z",{fields},"ms":{seconds * 1000:.3f},'
                f'"trace_id":"{request.trace_id}","span_id":"{request.span_id}",{rest}\n'
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
