"""What was said and done, kept outside the system: the other side of every account that the invariants settle."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.market import Event, Row

ACCEPTED = "202"


@dataclass
class Sent:
    """An event, the way it went (api, stream, channel), and what was answered each time: a status, or what broke."""

    event: Event
    way: str
    answers: list[tuple[float, str]] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return any(answer == ACCEPTED for _, answer in self.answers)


class Entry(NamedTuple):
    """One entry of the stream, as the witness read it. `event_id` is "" where there is none."""

    stream_id: str
    raw: str
    event_id: str

    @property
    def order(self) -> tuple[int, int]:
        return order(self.stream_id)

    def at(self, began_at: float) -> float:
        """When it was added, in seconds since then (seconds since 1970), by the clock of Redis."""
        return self.order[0] / 1000 - began_at


def order(stream_id: str) -> tuple[int, int]:
    """By what stream ids are compared: milliseconds and a sequence number."""
    ms, _, sequence = stream_id.partition("-")
    return int(ms), int(sequence)


class Read(NamedTuple):
    """A price that somebody was given, in the currency's minor unit, and when that was computed (ms since 1970);
    other times are seconds since the run began. A connection is a number of its own."""

    who: str
    connection: int
    asked_at: float
    answered_at: float
    row: Row
    version: int
    price: int
    source: str
    computed_at: int


class Failure(NamedTuple):
    """A read that got no price, or an answer to a publisher that none should get. `who` names the API asked."""

    asked_at: float
    ended_at: float
    who: str
    what: str


class Violation(NamedTuple):
    """A promise that was broken; about which events or price, and when, where that is known."""

    promise: str
    what: str
    event_ids: tuple[str, ...] = ()
    row: Row | None = None
    at: float | None = None


class Window(NamedTuple):
    """When what (an API, a store, a network) was away or coming back, by our doing."""

    what: str
    since: float
    until: float


class Ledger:
    """Times are seconds since it was made. `path` is the same as a file of JSON lines, whatever becomes of us."""

    def __init__(self, path: Path) -> None:
        self._began = time.monotonic()
        self.began_at = time.time()
        self.path = path
        self._file = path.open("w", buffering=1)
        self._lock = threading.Lock()
        self.sent: dict[str, Sent] = {}
        self.entries: dict[str, Entry] = {}
        self._unacknowledged: set[str] = set()
        self.acknowledged_at: dict[str, float] = {}
        self.reads: list[Read] = []
        self.faults: list[tuple[float, str]] = []
        self.counts: Counter[str] = Counter()
        self.windows: dict[tuple[str, float], Window] = {}
        self.failures: list[Failure] = []
        self.violations: list[Violation] = []

    def now(self) -> float:
        return time.monotonic() - self._began

    def send(self, event: Event, way: str) -> Sent:
        with self._lock:
            sent = self.sent[event["id"]] = Sent(event, way)
            self._write("sent", way=way, event=event)
        return sent

    def answered(self, sent: Sent, answer: str) -> None:
        with self._lock:
            sent.answers.append((self.now(), answer))
            self._write("answered", id=sent.event["id"], answer=answer)

    def in_stream(self, entries: Iterable[Entry]) -> None:
        with self._lock:
            for entry in entries:
                if entry.stream_id not in self.entries:
                    self._unacknowledged.add(entry.stream_id)
                self.entries[entry.stream_id] = entry
                self._write("stream", stream_id=entry.stream_id, id=entry.event_id)

    def acknowledged(self, delivered: tuple[int, int], pending: set[str]) -> None:
        """Of the entries known, those up to the last that was delivered which are not pending are done."""
        with self._lock:
            done = [id_ for id_ in self._unacknowledged if id_ not in pending and order(id_) <= delivered]
            self._unacknowledged.difference_update(done)
            self.acknowledged_at |= dict.fromkeys(done, self.now())

    def read(self, read: Read) -> None:
        with self._lock:
            self.reads.append(read)

    def fault(self, kind: str, text: str) -> None:
        with self._lock:
            self.counts[kind] += 1
            self.faults.append((self.now(), text))
            self._write("fault", fault=text)

    def was_away(self, window: Window) -> None:
        """Another one that began at the same time is the same, as it was known before."""
        self.windows[window.what, window.since] = window

    def note(self, text: str) -> None:
        """Something for the time line that is no fault."""
        with self._lock:
            self.faults.append((self.now(), text))
            self._write("note", note=text)

    def failed(self, failure: Failure) -> None:
        with self._lock:
            self.failures.append(failure)
            self._write("failed", **failure._asdict())

    def broken(self, violation: Violation) -> None:
        with self._lock:
            self.violations.append(violation)
            self._write("violation", promise=violation.promise, what=violation.what)

    def in_order(self) -> list[Entry]:
        """The stream as it was, first to last."""
        with self._lock:
            return sorted(self.entries.values(), key=lambda entry: entry.order)

    def excused(self, since: float, until: float, *what: str) -> bool:
        """Whether one of these was away at some time between."""
        return any(
            window.what in what and window.since <= until and since <= window.until for window in self.windows.values()
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, kind: str, **what: Any) -> None:
        self._file.write(json.dumps({"at": round(self.now(), 3), "kind": kind, **what}) + "\n")


def unique(violations: Sequence[Violation], shown: int = 5) -> list[Violation]:
    """At most `shown` of each promise."""
    seen: Counter[str] = Counter()
    kept = []
    for violation in violations:
        seen[violation.promise] += 1
        if seen[violation.promise] <= shown:
            kept.append(violation)
    return kept
