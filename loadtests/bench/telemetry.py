"""What keeping a record of each request costs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

import redis

from app.domain.parcel import Parcel
from app.observability.capture import Capture
from app.observability.notes import Kind
from app.observability.requests import RequestLog
from app.observability.sources import Source
from app.observability.tracing import begin_request_trace
from app.services.breaker import Breaker
from loadtests.bench import load
from loadtests.bench.results import Result, result
from loadtests.bench.servers import Server

if TYPE_CHECKING:
    from loadtests.bench.measures import Bench

PRICE = "/api/v1/price"
THE_SERVICE, THE_CONFIG = "app.main:create_app()", "gunicorn_config.py"
MODES = {"off": "no records", "buffered": "records, buffered", "synchronous": "records, synchronous"}
KEPT_UP_S = 1.0


def telemetry(bench: "Bench") -> Iterator[Result]:
    """Records of requests: off, buffered and synchronous in turns, and what one costs within the process."""
    yield from _in_process(bench.rounds)
    streams = {mode: f"bench:{mode}:{uuid4().hex[:8]}" for mode in MODES}
    servers: dict[str, Server] = {}
    try:
        with ExitStack() as stack:
            for mode, name in MODES.items():
                env = {
                    "PRICING_TELEMETRY": mode,
                    "PRICING_TELEMETRY_STREAM": streams[mode],
                    "PRICING_TELEMETRY_BACKLOG_MB": "2048",
                    "PRICING_TELEMETRY_SPILL_DIR": str(bench.folder / f"spill-{mode}"),
                }
                servers[name] = stack.enter_context(bench.beside(THE_SERVICE, config=THE_CONFIG, **env))
                load.check(servers[name], bench.bodies[:50])
                bench.warm(servers[name])
            seen = bench.in_turns(servers, PRICE, bench.at_hand)
            with bench.broker() as client:
                yield from _keeping_up(bench, servers[MODES["buffered"]], client, streams["buffered"])
    finally:
        with bench.broker() as client:
            client.delete(*streams.values())
    off = seen[MODES["off"]]
    for mode, name in MODES.items():
        runs = seen[name]
        target, holds = ("≥ 0.97", lambda ratio: ratio >= 0.97) if mode == "buffered" else (None, None)
        rates, costs = [run.per_s for run in runs], [run.cpu_us for run in runs]
        yield result(name, "quotes/s", rates, [run.per_s for run in off], MODES["off"], target, holds)
        yield result(name, "µs CPU/request", costs, [run.cpu_us for run in off], MODES["off"])


def _keeping_up(bench: "Bench", server: Server, client: redis.Redis, stream: str) -> Iterator[Result]:
    """As many connections as there is anything to gain from: what is answered is in the stream, nothing on disk."""
    rates, late = [], []
    for _ in range(bench.rounds):
        last = client.xrevrange(stream, count=1)
        after = last[0][0].decode() if last else "0"
        run = load.closed(server, PRICE, bench.at_hand, bench.seconds, connections=64)
        answered = round(run.per_s * bench.seconds)
        until = time.monotonic() + 30
        began = time.monotonic()
        while (kept := _records(client, stream, after)) < answered and time.monotonic() < until:
            time.sleep(0.02)
        rates.append(kept / bench.seconds)
        late.append(time.monotonic() - began)
    spilled = list((bench.folder / "spill-buffered").glob("*.spill"))
    bench.say(f"spilled: {len(spilled)} files")
    yield result("records that reach the stream, at the highest rate", "records/s", rates)
    yield result(
        "the last one, after the last answer", "s", late, target=f"≤ {KEPT_UP_S:g}",
        holds=lambda value: value <= KEPT_UP_S and not spilled,
    )  # fmt: skip


def _records(client: redis.Redis, stream: str, after: str) -> int:
    entries = client.xrange(stream, f"({after}" if after != "0" else "-")
    return sum(int(fields.get(b"count", 0)) for _, fields in entries)


class _Nowhere:
    """A stream that takes everything, and a spill that nothing comes to."""

    records = 0

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Taken."""

    def append(self, parcels: Sequence[Parcel], *, sync: bool = False) -> int:
        raise AssertionError("nothing is away")

    def oldest(self, count: int) -> list[Parcel]:
        return []

    def confirm(self, count: int) -> None:
        raise AssertionError("nothing was spilled")

    def adopt(self) -> int:
        return 0

    def folder_bytes(self) -> int:
        return 0


def _in_process(rounds: int) -> Iterator[Result]:
    """What the request itself waits for, and what the threads do for it later: taken, encoded, handed over."""
    batch, kind, client = 500, Kind("POST", PRICE, 200), ("127.0.0.1", 4711)
    traces = [begin_request_trace(None, 0).traceparent for _ in range(batch)]
    nowhere = _Nowhere()
    capture = Capture(Source(255), nowhere, nowhere, Breaker("nowhere", 1, 1, lambda: 0), "nowhere", ())
    log = RequestLog("bench", capture)
    noting, later = [], []
    for _ in range(max(20, rounds)):
        best_noting = best_later = 1.0
        for _ in range(20):
            began = time.perf_counter()
            for trace in traces:
                log.note(began, kind, 0.00003, trace, 1, 700, "kEyId", client, None, None)
            noted = time.perf_counter()
            capture.take(log.gathered())
            capture.send()
            best_noting, best_later = min(best_noting, noted - began), min(best_later, time.perf_counter() - noted)
        noting.append(best_noting / batch * 1e6)
        later.append(best_later / batch * 1e6)
    both = [a + b for a, b in zip(noting, later, strict=True)]
    yield result("a record, on the request", "µs/request", noting)
    yield result("a record, in the threads beside it", "µs/request", later)
    yield result("a record, both", "µs/request", both, target="≤ 5", holds=lambda value: value <= 5)
