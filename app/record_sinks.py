"""What brings records of requests from the stream into PostgreSQL and VictoriaMetrics, as a worker has it."""

import time
from collections.abc import Callable, Sequence

from app import stopping
from app.adapters.breakers import TELEMETRY_POSTGRESQL, TELEMETRY_VICTORIAMETRICS, Breakers, SinkBreaker
from app.adapters.record_store import RecordStore
from app.adapters.record_stream import POSTGRESQL, VICTORIAMETRICS, RecordStream
from app.adapters.victoriametrics import VictoriaMetrics
from app.domain.arrivals import Arrival, decode_arrival
from app.domain.stream_entry import StreamEntry
from app.observability import metrics
from app.observability.tracing import batch_span, messaging
from app.pipeline.consumer import Consumer, Decoded, Terms
from app.pipeline.retry import Patience, Retry
from app.pipeline.sinks import Sink
from app.services.ports import Clock
from app.settings import Settings

BATCH = 32
"""Entries that are written at once: up to 16,384 records. With more it is hardly faster, and takes more memory."""

VICTORIAMETRICS_TIMEOUT_S = 3.0

_CONSUMER = "worker"
"""Whoever works for a sink has its lock, so all go by one name: what one who died had read, the next finds at once."""

_BREAKERS = {POSTGRESQL: TELEMETRY_POSTGRESQL, VICTORIAMETRICS: TELEMETRY_VICTORIAMETRICS}


class RecordSinks:
    """Those that are configured. A sink connects when it is first needed."""

    def __init__(
        self, settings: Settings, store: RecordStore, stream: RecordStream, breakers: Breakers, clock: Clock
    ) -> None:
        self._settings, self._store, self._stream = settings, store, stream
        self._breakers, self._clock = breakers, clock
        self._victoria: VictoriaMetrics | None = None
        self._consumers: dict[str, Consumer[Arrival]] = {}

    def work(self, sink: str, turn_s: float) -> bool:
        """Write what waits for a sink, for about so many seconds; whether there may be more to do now. To be called
        under the sink's lock. Raises what is in `app.errors.TRANSIENT` where the sink or the stream is away."""
        return sink in self._stream.groups and self.consumer(sink).work(turn_s)

    def consumer(self, sink: str) -> Consumer[Arrival]:
        """Of a sink that is configured."""
        if sink not in self._consumers:
            self._consumers[sink] = Consumer(
                _CONSUMER,
                self._stream.groups[sink],
                decode,
                _Observed(sink, self._open(sink), self._settings.telemetry_stream, self._clock),
                SinkBreaker(self._breakers, _BREAKERS[sink]),
                retry=Retry(Patience(tries=2), wait=_wait),
                clock=self._clock,
                stopping=stopping.asked,
                terms=Terms(read_count=BATCH, max_attempts=self._settings.max_attempts),
            )
        return self._consumers[sink]

    def close(self) -> None:
        if self._victoria is not None:
            self._victoria.close()

    def _open(self, sink: str) -> Sink[Arrival]:
        if sink == POSTGRESQL:
            return self._store
        assert self._settings.victoriametrics_url is not None
        self._victoria = VictoriaMetrics(
            self._settings.victoriametrics_url.get_secret_value(),
            VICTORIAMETRICS_TIMEOUT_S,
            self._settings.telemetry_retention_days,
        )
        return self._victoria


class _Observed:
    """A sink whose writes are measured, and traced together with the requests in them that are traced."""

    def __init__(self, name: str, sink: Sink[Arrival], stream: str, clock: Callable[[], int]) -> None:
        self._name, self._sink, self._stream, self._clock = name, sink, stream, clock

    def write(self, items: Sequence[Arrival]) -> None:
        attributes = messaging("redis", "process", "process", self._stream) | {
            "messaging.batch.message_count": len(items),
            "messaging.consumer.group.name": self._name,
            "pricing.records": sum(item.records for item in items),
            "pricing.queue_wait_ms": max(0, self._clock() - min(item.arrived_ms for item in items)),
        }
        with (
            batch_span(f"write telemetry to {self._name}", [item.traceparent for item in items], attributes),
            metrics.telemetry_write.labels(self._name).time(),
        ):
            self._sink.write(items)


def decode(entry: StreamEntry) -> Decoded[Arrival]:
    """Raises ValueError where the entry is none of a source of records."""
    arrival = decode_arrival(entry.stream_id, entry.fields)
    return Decoded(arrival, arrival.records)


def _wait(seconds: float) -> bool:
    """Not longer than until this process shall end; whether it shall."""
    until = time.monotonic() + seconds
    while not stopping.asked() and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.1))
    return stopping.asked()
