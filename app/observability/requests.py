"""What every request leaves behind: a duration and an access record. Noted at once, written a little later.

Writing a line and moving a histogram costs more than answering from memory, so requests only append to a list,
and a thread writes what has gathered ten times a second. A process that is killed loses what it had not written.
"""

import sys
import threading
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from app.observability import metrics

_INTERVAL_S = 0.1

_encode = msgspec.json.Encoder().encode


class Record(NamedTuple):
    """One answered request; `at` in seconds since 1970, `seconds` its duration; `at_hand` the quotes that were
    answered from this process' memory, without their endpoint."""

    at: float
    method: str
    route: str
    status: int
    seconds: float
    trace_id: str
    at_hand: int = 0


class _Line(msgspec.Struct):
    """An access record as it is written, with the fields that every log line has."""

    timestamp: datetime
    method: str
    route: str
    status: int
    ms: float
    trace_id: str
    process: str
    event: str = "request"
    level: str = "info"
    logger: str = "access"


class RequestLog:
    def __init__(self, process: str, lines: bool) -> None:
        """`lines` says whether access records are written; durations always are."""
        self._process, self._lines = process, lines
        self._gathered: list[Record] = []
        self.note = self._gathered.append
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
            self._write()
        self._write()

    def _write(self) -> None:
        count = len(self._gathered)  # only this thread removes, and only from the front
        records = self._gathered[:count]
        del self._gathered[:count]
        durations: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
        for record in records:
            durations[record[1:4]].append(record.seconds)
        for (method, route, status), seconds in durations.items():
            metrics.observe_many(metrics.http_request_duration.labels(method, route, str(status)), seconds)
        if at_hand := sum(record.at_hand for record in records):
            metrics.quotes.labels("cache").inc(at_hand)
        if self._lines and records:
            with suppress(OSError):  # a full disk or a closed pipe: what was counted stays counted
                sys.stderr.buffer.write(b"".join(map(self._line, records)))
                sys.stderr.buffer.flush()

    def _line(self, record: Record) -> bytes:
        line = _Line(
            datetime.fromtimestamp(record.at, UTC),
            record.method,
            record.route,
            record.status,
            round(record.seconds * 1000, 3),
            record.trace_id,
            self._process,
        )
        return _encode(line) + b"\n"
