"""What is kept of every request, on its way into the stream: numbered, in batches, without any request waiting for it.

The thread of the request log hands over what has gathered; another one sends, so that a stream that is slow or away
holds up neither. What is lost of a process that is killed, and how that shows: docs/operations.md, "Request telemetry".
"""

import itertools
import os
import threading
import time
from binascii import unhexlify
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog
from opentelemetry import trace
from opentelemetry.context import Context

from app.domain.client_address import LONGEST_HEADER, Network, clean_user_id, client_address, last_of
from app.domain.parcel import Parcel
from app.domain.telemetry import Asked, encode_columns
from app.observability import metrics
from app.observability.notes import Kind, Noted
from app.observability.sources import End, Source
from app.observability.tracing import RequestTrace, messaging, traceparent_of
from app.pipeline.outlet import Outlet, Spill, Stream
from app.services.breaker import Breaker

_logger = structlog.get_logger(__name__)
_tracer = trace.get_tracer(__name__)

_waiting_in_memory = metrics.telemetry_waiting.labels("memory")

LOOK_S = 1.0
"""How often somebody looks whether what was spilled can go, also by processes that have died."""

DRAIN_S = 2.0
"""How long the end waits for the stream, before the rest is spilled."""


class FolderSpill(Spill, Protocol):
    def folder_bytes(self) -> int: ...


def end_of(end: End) -> Parcel:
    """The entry that says how far a source came."""
    return Parcel({b"source": end.source.encode(), b"ended": b"%d" % end.last}, 0)


class Capture:
    """The `Keeper` of a request log. With `synchronous`, `kept` is told up to which number requests are in the stream,
    or on disk, once they are; else nobody waits for that."""

    def __init__(
        self,
        source: Source,
        stream: Stream,
        spill: FolderSpill,
        breaker: Breaker,
        destination: str,
        trusted: Sequence[Network],
        kept: Callable[[int], object] | None = None,
    ) -> None:
        self.numbers = source.numbers
        self._source, self._spill, self._destination, self._kept = source, spill, destination, kept
        self._outlet = Outlet(stream, spill, breaker, self._sent)
        self._believes_proxies = bool(trusted)
        self._client = lru_cache(10_000)(lambda peer, forwarded: client_address(peer, forwarded, trusted))
        self._user = lru_cache(10_000)(clean_user_id)
        self._spans: dict[bytes, trace.Span] = {}
        self._taken = self._answered_ns = 0
        self._looked_at = 0.0
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, batches: Sequence[Noted]) -> None:
        """Send these on their way."""
        parcels = []
        for run in (run for batch in batches for run in self._runs(batch)):
            try:
                parcels.append(self._parcel(run))
            except Exception as error:  # a defect; but durations are to be counted all the same
                metrics.telemetry_dropped.labels("defect").inc(len(run.rows))
                _logger.error("requests cannot be recorded", exc_info=error)
        if self._kept is not None:
            self._outlet.put_and_wait(parcels)
            self._kept(self._taken)
        else:
            self._outlet.put(parcels)
        if parcels:
            self._wake.set()
        account = self._outlet.account()
        _waiting_in_memory.set(account.pending)
        metrics.telemetry_unaccounted.set(account.missing)

    def waits(self) -> bool:
        """Whether anything still waits to be sent."""
        return self._outlet.waits

    def hurry(self) -> None:
        """What still waits to be sent goes to disk."""
        self._outlet.hurry()

    def send(self) -> bool:
        """Of what is on its way, what comes next; whether there was anything."""
        return self._outlet.send()

    def stop(self) -> None:
        """What is left goes to the stream, or to the disk; and this source ends."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        if self._outlet.close(end_of(End(self._source.name, self.numbers[0]))):
            self._source.end()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:  # a disk that does not read, or a defect: what is new shall be sent all the same
                _logger.error("spilled records cannot be sent", exc_info=error)
                self._wake.wait(LOOK_S)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and self._outlet.send():
            pass

    def _turn(self) -> None:
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            self._look()
        self._wake.clear()
        more = self.send()
        more |= self._replay()
        if not more:
            self._wake.wait(LOOK_S)

    def _look(self) -> None:
        adopted = self._spill.adopt()
        if adopted:
            metrics.telemetry_adopted.inc(adopted)
            _logger.info("took over what another process had spilled", records=adopted)
        metrics.telemetry_waiting.labels("spill").set(self._spill.records)
        metrics.telemetry_spill_bytes.set(self._spill.folder_bytes())

    def _replay(self) -> bool:
        before = self._outlet.replayed
        more = self._outlet.replay()
        if replayed := self._outlet.replayed - before:
            metrics.telemetry_published.labels("spill").inc(replayed)
        return more

    def _runs(self, noted: Noted) -> Sequence[Noted]:
        """Those without a gap in their numbers, which is where the buffer was full."""
        numbers = noted.rows["number"]
        first, last = int(numbers[0]), int(numbers[-1])
        metrics.telemetry_noted.inc(last - self._taken)
        missing = last - self._taken - len(numbers)
        self._taken = last
        if missing:
            metrics.telemetry_dropped.labels("memory_full").inc(missing)
        if last - first == len(numbers) - 1:
            return [noted]
        starts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        return [noted.only(slice(start, end)) for start, end in itertools.pairwise(starts)]

    def _parcel(self, noted: Noted) -> Parcel:
        rows, said = noted.rows, noted.said
        latency_ns = (rows["seconds"] * 1e9).astype(np.int64)
        clock_ns = time.time_ns() - time.perf_counter_ns()
        started_at_ns = clock_ns + (rows["ended"] * 1e9).astype(np.int64) - latency_ns
        first = int(rows["number"][0])
        batch = encode_columns(
            self._source.name,
            os.getpid(),
            first,
            self._answered_ns,
            [self._asked(*each) for each in said],  # of many requests once
            noted.said_of,
            started_at_ns,
            latency_ns,
            rows["sent_bytes"],
            unhexlify(rows["trace_id"].tobytes()),
        )
        self._answered_ns = int(started_at_ns[-1] + latency_ns[-1])
        fields = {
            b"source": self._source.name.encode(),
            b"first": b"%d" % first,
            b"count": b"%d" % len(rows),
            b"batch": batch,
        }
        if any(sampled for *_, sampled in said):
            sampled = np.array([sampled for *_, sampled in said])[noted.said_of]
            span = self._span(rows[sampled], len(rows))
            fields[b"traceparent"] = traceparent_of(span)
            self._spans[fields[b"first"]] = span
        return Parcel(fields, len(rows))

    def _asked(
        self, kind: Kind, client: str, key_id: str, forwarded: bytes | None, user_id: bytes | None, sampled: bool
    ) -> Asked:
        last = last_of(forwarded) if forwarded and self._believes_proxies else None
        address = self._client(client, last) if client else ""
        user = self._user(user_id) if user_id and len(user_id) <= LONGEST_HEADER else ""
        return kind.method, kind.route, kind.status, address, key_id, user, sampled

    def _span(self, sampled: npt.NDArray[Any], records: int) -> trace.Span:
        """A trace of the batch's own, which leads to those of the requests in it that are kept (dtype `ROW`)."""
        attributes = messaging("redis", "publish", "send", self._destination)
        return _tracer.start_span(
            "publish telemetry",
            context=Context(),
            kind=trace.SpanKind.PRODUCER,
            links=[
                trace.Link(RequestTrace(trace_id.decode(), span_id.decode(), None, True).span_context())
                for trace_id, span_id in sampled[["trace_id", "span_id"]].tolist()
            ],
            attributes=attributes | {"messaging.batch.message_count": records},
        )

    def _sent(self, parcel: Parcel, fate: bool | None) -> None:
        if fate:
            metrics.telemetry_published.labels("memory").inc(parcel.records)
        elif fate is False:
            metrics.telemetry_spilled.inc(parcel.records)
        else:
            metrics.telemetry_dropped.labels("spill_full").inc(parcel.records)
        span = self._spans.pop(parcel.fields.get(b"first", b""), None)
        if span is not None:
            span.set_attribute("pricing.telemetry_to", {True: "stream", False: "spill", None: "nowhere"}[fate])
            span.end()
