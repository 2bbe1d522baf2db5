"""The sink of request records in VictoriaMetrics: two points for each request, for graphs by key, user and client.

Of equal points (same series, same ms) it keeps one, if it is started with `-dedup.minScrapeInterval=1ms`. So a batch
that comes again must consist of the same points, and two requests must never make the same: what they are made of is
the batch alone. Where several requests of one series were answered in one ms, each has a `lane` of its own.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import httpx

from app.domain.arrivals import Arrival, placed_us
from app.domain.telemetry import RecordBatch
from app.errors import InvalidInput, Unavailable

LATENCY, BYTES = "pricing_request_latency_seconds", "pricing_request_sent_bytes"

LANES = 64
"""More requests than a process answers in a ms."""

_REFUSED = (400, 413, 422)
"""It will never take this content. Any other refusal is about us: a wrong address, or credentials."""

_MS_NS, _US_NS, _S_NS = 1_000_000, 1_000, 1e9


class VictoriaMetrics:
    """At `url`, under which its API is. `kept_days` is how long PostgreSQL keeps records: what cannot have happened
    since then is placed where it arrived, as there."""

    def __init__(self, url: str, timeout_s: float, kept_days: float) -> None:
        self._kept_days = kept_days
        self._client = httpx.Client(base_url=url.rstrip("/") + "/", timeout=timeout_s, trust_env=False)

    def write(self, items: Sequence[Arrival]) -> None:
        """All of them in one request. Raises `Unavailable`, and `InvalidInput` where it will never take them."""
        batches = [(content, arrived_ms) for arrived_ms, content, _ in items if isinstance(content, RecordBatch)]
        if batches:
            # Made as they are sent: it is at work on one batch while the next is made.
            self._send(
                lines_of(batch, placed_us(batch, arrived_ms, self._kept_days)[0]).encode()
                for batch, arrived_ms in batches
            )

    def _send(self, body: Iterator[bytes]) -> None:
        try:
            response = self._client.post("api/v1/import/prometheus", content=body)
        except httpx.TransportError as error:
            raise Unavailable(f"VictoriaMetrics is not available: {error}", upstream="victoriametrics") from error
        if response.is_success:
            return
        told = f"VictoriaMetrics answers {response.status_code}: {response.text[:200]}"
        if response.status_code in _REFUSED:
            self.ping()  # an address that is not VictoriaMetrics' says the same of everything
            raise InvalidInput(told)
        raise Unavailable(told, _retry_after_s(response), upstream="victoriametrics")

    def ping(self) -> None:
        """Raises `Unavailable`."""
        try:
            health = self._client.get("health")
        except httpx.TransportError as error:
            raise Unavailable(f"VictoriaMetrics is not available: {error}", upstream="victoriametrics") from error
        if not health.is_success:
            told = f"VictoriaMetrics' /health answers {health.status_code}"
            raise Unavailable(told, _retry_after_s(health), upstream="victoriametrics")

    def close(self) -> None:
        self._client.close()


def lines_of(batch: RecordBatch, started_us: Sequence[int]) -> str:
    """The points of a batch in Prometheus' text format. Each is at the ms in which its request was answered: in that
    order requests are numbered, so a batch shares at most one ms with the one before it."""
    taken: dict[tuple[str, int], int] = {}
    shared_ms = batch.answered_before_ns // _MS_NS
    source = f'source="{_escaped(batch.source)}"'
    lines = []
    for sequence, (record, started) in enumerate(zip(batch.records, started_us, strict=True), batch.first):
        labels = _labels(record.method, record.route, record.status, record.client, record.key_id, record.user_id)
        ms = (started * _US_NS + record.latency_ns) // _MS_NS
        if ms == shared_ms:
            lane = f',lane="s{sequence % LANES}"'
        else:
            nth = taken[labels, ms] = taken.get((labels, ms), -1) + 1
            lane = f',lane="{nth}"' if nth else ""
        series = f"{{{source}{labels}{lane}}}"
        lines.append(
            f"{LATENCY}{series} {record.latency_ns / _S_NS!r} {ms}\n{BYTES}{series} {record.sent_bytes} {ms}\n"
        )
    return "".join(lines)


@lru_cache(65_536)
def _labels(method: str, route: str, status: int, client: str, key_id: str, user_id: str) -> str:
    """What tells series of one source apart, as text; an empty label is the same as none. A trace id is none of them:
    it would make a series of each request. The trace of a request is found in PostgreSQL."""
    given = {
        "method": method, "route": route, "status": str(status), "client": client, "key_id": key_id, "user_id": user_id,
    }  # fmt: skip
    return "".join(f',{name}="{_escaped(value)}"' for name, value in given.items() if value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _retry_after_s(response: httpx.Response) -> int:
    asked = response.headers.get("retry-after", "")
    return int(asked) if asked.isdecimal() else 1
