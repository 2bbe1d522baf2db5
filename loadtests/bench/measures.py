"""What is measured, one function each. Contenders take turns within a round, each round in another order."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec
import redis

from app.adapters.price_cache import clear
from app.api import quick
from app.api.schemas import PriceRequest
from loadtests.bench import load, questions
from loadtests.bench.batches import BATCH, batch
from loadtests.bench.load import Closed
from loadtests.bench.peers import KEY
from loadtests.bench.results import Result, figure, result
from loadtests.bench.rungs import RUNGS
from loadtests.bench.servers import Product, Server, serve, sink
from loadtests.bench.telemetry import telemetry
from loadtests.popularity import Row

PRICE = "/api/v1/price"
AT_HAND = 100_000
"""Rows that an API process keeps in its near cache, by default."""
MB = 1_000_000
SERVICE = {"BENCH_WORKER_CLASS": "gunicorn_config.PricingWorker"}
"""The service's own worker class, for what knows its protocol."""
PEERS = "loadtests/bench/peer_config.py"
THE_SERVICE, THE_CONFIG = "app.main:create_app()", "gunicorn_config.py"


@dataclass
class Bench:
    """What a measurement works with. `seconds` is the length of one run, `soak_s` of the load on the memory;
    `quick` leaves the largest out."""

    product: Product
    folder: Path
    counts: dict[Row, int]
    workers: int
    seconds: float
    rounds: int
    soak_s: float
    quick: bool
    say: Callable[[str], None]
    warm_s: float = 4
    answer_bytes: int = 700
    _capacity: float | None = field(default=None)

    def __post_init__(self) -> None:
        hot = dict(list(self.counts.items())[:AT_HAND])
        self.bodies = questions.asked(hot)
        self.at_hand = questions.write(self.folder / "at-hand", self.bodies)
        self.in_batches = questions.write(self.folder / "batches", questions.batches(self.bodies, 100))
        self.warming = questions.write(self.folder / "warming", questions.batches(self.bodies, 1000))
        load.check(self.product, self.bodies[:200])
        sizes = [len(load.post(self.product.port, PRICE, body)) for body in self.bodies[:200]]
        self.answer_bytes = int(median(sizes))
        self.warm(self.product)

    def warm(self, server: Server) -> None:
        """Every process of the server has everything at hand that will be asked for: another round of it all is not
        cheaper than the one before. What is cold may be refused, and where the database's files have left the memory
        that goes on for a while."""
        runs: list[Closed] = []
        while len(runs) < 3 or ((runs[-1].failed or runs[-1].cpu_us < 0.9 * runs[-2].cpu_us) and len(runs) < 40):
            runs.append(load.closed(server, BATCH, self.warming, self.warm_s, connections=4, may_fail=True))
            self.say(f"{server.name} is warmed: {figure(runs[-1].cpu_us)} µs CPU, {runs[-1].failed:,} failed")
        if runs[-1].failed:
            sys.exit(f"{server.name} still fails requests after {len(runs)} rounds of {self.warm_s:g} s")

    @contextmanager
    def beside(self, application: str, config: str = PEERS, **env: str) -> Iterator[Server]:
        """An application under the service's server, with the service's stores."""
        given = {**self.product.stores, "PRICING_WORKERS": str(self.workers)}
        log = self.folder / f"{application.split(':')[1]}.log"
        server = serve(application, log, {**given, "BENCH_ANSWER_BYTES": str(self.answer_bytes), **env}, config)
        try:
            yield server
        finally:
            server.stop()

    def in_turns(self, servers: dict[str, Server], path: str, bodies: Path) -> dict[str, list[Closed]]:
        seen: dict[str, list[Closed]] = {name: [] for name in servers}
        names = list(servers)
        for turn in range(self.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seen[name].append(load.closed(servers[name], path, bodies, self.seconds))
                self.say(f"{name}: {figure(seen[name][-1].per_s)}/s, {figure(seen[name][-1].cpu_us)} µs CPU")
        return seen

    @property
    def capacity(self) -> float:
        """Quotes a second that the service gives to wrk."""
        if self._capacity is None:
            runs = self.in_turns({"service": self.product}, PRICE, self.at_hand)["service"]
            self._capacity = median(run.per_s for run in runs)
        return self._capacity

    def cache(self) -> redis.Redis:
        return redis.Redis.from_url(self.product.stores["PRICING_CACHE_URL"])

    def broker(self) -> redis.Redis:
        return redis.Redis.from_url(self.product.stores["PRICING_BROKER_URL"])


def quotes(bench: Bench) -> Iterator[Result]:
    """Cached quotes against the ceiling, the ordinary way, and cashews."""
    give_peers_their_answers(bench)
    with (
        bench.beside("loadtests.bench.peers:ceiling()") as ceiling,
        bench.beside("loadtests.bench.peers:ordinary()") as ordinary,
        bench.beside("loadtests.bench.peers:cashews()") as cashews,
    ):
        for server in (bench.product, ordinary, cashews):
            load.check(server, bench.bodies[-100:])
        load.closed(cashews, PRICE, bench.at_hand, 3)
        servers = {"service": bench.product, "ceiling": ceiling, "FastAPI, redis-py": ordinary, "cashews": cashews}
        seen = bench.in_turns(servers, PRICE, bench.at_hand)
        load.check(bench.product, bench.bodies[-100:])
    rates = {name: [run.per_s for run in runs] for name, runs in seen.items()}
    bench._capacity = median(rates["service"])
    targets = {
        "ceiling": ("≥ 0.70", lambda ratio: ratio >= 0.70),
        "FastAPI, redis-py": ("≥ 4", lambda ratio: ratio >= 4),
        "cashews": (None, None),
    }
    for other, (target, holds) in targets.items():
        yield result("cached quotes", "quotes/s", rates["service"], rates[other], other, target, holds)
    for other in targets:
        yield result(other, "answers/s", rates[other])
    for name, runs in seen.items():
        yield result(f"{name}: CPU of the API", "µs/request", [run.cpu_us for run in runs])


def give_peers_their_answers(bench: Bench) -> None:
    """Finished answers into Valkey, where the peers read them."""
    different = list(dict.fromkeys(bench.bodies))
    answers = load.quotes(bench.product, different)
    with bench.cache() as client:
        for start in range(0, len(different), 1000):
            part = slice(start, start + 1000)
            asked = map(PriceRequest.model_validate_json, different[part])
            client.mset(dict(zip(map(KEY.format, asked), answers[part], strict=True)))


def catalogue(bench: Bench) -> Iterator[Result]:
    """Quotes over the whole catalogue: what a process has not at hand comes from Valkey."""
    bodies = questions.asked(bench.counts, seed=2)
    file = questions.write(bench.folder / "catalogue", bodies)
    load.closed(bench.product, PRICE, file, 3 * bench.seconds)
    seen = [load.closed(bench.product, PRICE, file, bench.seconds) for _ in range(bench.rounds)]
    load.check(bench.product, bodies[:100])
    yield result(f"quotes over all {len(bench.counts):,} prices", "quotes/s", [run.per_s for run in seen])
    bench.warm(bench.product)


def ladder(bench: Bench) -> Iterator[Result]:
    """What each layer costs."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        for name in RUNGS:
            worker = {} if name == "asgi" else SERVICE
            servers[name] = stack.enter_context(bench.beside(f"loadtests.bench.rungs:{name}()", **worker))
            if name not in ("asgi", "nothing", "decode"):
                load.check(servers[name], bench.bodies[:50])
                bench.warm(servers[name])
        seen = bench.in_turns(servers, PRICE, bench.at_hand)
    ceiling = [run.per_s for run in seen["asgi"]]
    for name, words in RUNGS.items():
        yield result(f"ladder: {words}", "requests/s", [run.per_s for run in seen[name]], ceiling, "ceiling")
        yield result(f"ladder: {words}", "µs CPU/request", [run.cpu_us for run in seen[name]])


def tracing(bench: Bench) -> Iterator[Result]:
    """What spans cost: none, those of 1 % and of all requests, sent to somebody who throws them away."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        endpoint = stack.enter_context(sink())
        for percent in (0, 1, 100):
            name = f"tracing {percent} % of requests"
            env = {"PRICING_OTLP_ENDPOINT": endpoint, "PRICING_TRACE_SAMPLE_RATIO": str(percent / 100)}
            servers[name] = stack.enter_context(bench.beside(THE_SERVICE, config=THE_CONFIG, **env))
            load.check(servers[name], bench.bodies[:50])
            bench.warm(servers[name])
        seen = bench.in_turns(servers, PRICE, bench.at_hand)
    nothing = [run.cpu_us for run in seen["tracing 0 % of requests"]]
    for name, runs in seen.items():
        yield result(name, "µs CPU/request", [run.cpu_us for run in runs], nothing, "tracing nothing")


SHARES = {"p50": 1.0, "p99": 5.0, "p99.9": 20.0}


def latency(bench: Bench) -> Iterator[Result]:
    """Constant rate at half the capacity, alone and while everything is recalculated."""
    rate, seconds = bench.capacity / 2, max(10.0, 4 * bench.seconds)
    alone, floor, beside = [], [], []
    with bench.beside("loadtests.bench.peers:ceiling()") as ceiling:
        for _ in range(max(3, bench.rounds // 2)):
            floor.append(load.paced(ceiling, rate, bench.at_hand, seconds))
            alone.append(load.paced(bench.product, rate, bench.at_hand, seconds))
            bench.say(f"alone: {alone[-1]}")
            beside.append(_during_recalculation(bench, rate, seconds))
            bench.say(f"beside a recalculation: {beside[-1]}")
    for share, limit in SHARES.items():
        yield _latency(f"{share} at {rate:,.0f}/s", alone, share, limit)
    for share, limit in SHARES.items():
        yield _latency(f"{share}, while everything is recalculated", beside, share, 2 * limit)
    for share in SHARES:
        yield result(f"{share} of the ceiling, as the generator sees it", "ms", [seen[share] for seen in floor])


def _latency(name: str, seen: Sequence[dict[str, float]], share: str, limit: float) -> Result:
    return result(name, "ms", [s[share] for s in seen], target=f"< {limit:g}", holds=lambda value: value < limit)


def _during_recalculation(bench: Bench, rate: float, seconds: float) -> dict[str, float]:
    """One recalculation after the other, for as long as the load lasts."""
    pacer = load.start_paced(bench.product, rate, bench.at_hand, seconds)
    while pacer.poll() is None:
        recalculated(bench.product, lambda: pacer.poll() is not None)
    seen = load.finished(pacer, seconds)
    recalculated(bench.product, lambda: False)
    return seen


def recalculated(product: Product, enough: Callable[[], bool]) -> None:
    task = json.loads(load.post(product.port, "/api/v1/recalculate", b"", product.key))["task_id"]
    deadline = time.monotonic() + 180
    while not enough():
        state = json.loads(load.get(product.port, f"/api/v1/tasks/{task}"))["state"]
        if state == "succeeded":
            return
        if state == "failed" or time.monotonic() > deadline:
            sys.exit(f"a recalculation is {state} after a while: see the worker's log")
        time.sleep(0.2)


def misses(bench: Bench) -> Iterator[Result]:
    """Prices that only the database has, one after the other at a modest rate."""
    rate, seen = 200.0, []
    seconds = max(5.0, bench.seconds)
    rows = list(bench.counts)
    for turn in range(max(3, bench.rounds // 2)):
        forget_everything(bench)
        part = rows[turn::7][: int(rate * seconds)]
        file = questions.write(bench.folder / "misses", [questions.body(row) for row in part])
        assert json.loads(load.post(bench.product.port, PRICE, questions.body(rows[turn + 3])))["source"] == "database"
        seen.append(load.paced(bench.product, min(rate, len(part) / seconds), file, seconds))
    yield result("a miss, p50", "ms", [s["p50"] for s in seen])
    yield result("a miss, p99", "ms", [s["p99"] for s in seen], target="< 25", holds=lambda value: value < 25)
    bench.warm(bench.product)


def forget_everything(bench: Bench) -> None:
    with bench.cache() as client:
        clear(client)
    time.sleep(1)


def memory(bench: Bench) -> Iterator[Result]:
    """An API process with a full near cache, and its growth under load."""
    while near_entries(bench.product) < bench.workers * min(AT_HAND, len(bench.counts)):
        hot = [questions.body(row) for row in list(bench.counts)[:AT_HAND]]
        load.closed(
            bench.product, BATCH, questions.write(bench.folder / "all", questions.batches(hot, 500)), 10, connections=4
        )
        time.sleep(1)
    bench.warm(bench.product)
    before = sizes(bench.product)
    bench.say(f"load for {bench.soak_s:g} s, {before}")
    paced = load.paced(bench.product, min(4000, bench.capacity / 2), bench.at_hand, bench.soak_s)
    after = sizes(bench.product)
    bench.say(f"{after}, {paced}")
    entries = near_entries(bench.product) / bench.workers
    within = lambda value: value <= 150  # noqa: E731
    yield result(f"RSS of an API process with {entries:,.0f} sheets", "MB", after["rss"], None, None, "≤ 150", within)
    yield result(f"PSS of an API process with {entries:,.0f} sheets", "MB", after["pss"])
    grown = [b - a for a, b in zip(before["rss"], after["rss"], strict=True)]
    yield result(f"growth in {bench.soak_s / 60:g} min of load", "MB", grown)


def sizes(server: Server) -> dict[str, list[float]]:
    full = [worker.memory_full_info() for worker in server.workers]
    return {"rss": [info.rss / MB for info in full], "pss": [info.pss / MB for info in full]}


def near_entries(product: Product) -> float:
    lines = load.get(product.port, "/metrics").decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("pricing_near_cache_entries "))


def workers(bench: Bench) -> Iterator[Result]:
    """The service under uvicorn-worker and under gunicorn's own ASGI worker."""
    with (
        bench.beside("loadtests.bench.rungs:whole()", **SERVICE) as uvicorn,
        bench.beside("loadtests.bench.rungs:whole()", BENCH_WORKER_CLASS="asgi") as native,
    ):
        for server in (uvicorn, native):
            load.check(server, bench.bodies[:50])
            bench.warm(server)
        seen = bench.in_turns({"uvicorn-worker": uvicorn, "gunicorn's asgi worker": native}, PRICE, bench.at_hand)
    theirs = [run.per_s for run in seen["uvicorn-worker"]]
    for name, runs in seen.items():
        yield result(f"service under {name}", "quotes/s", [run.per_s for run in runs], theirs, "uvicorn-worker")
        yield result(f"service under {name}", "µs CPU/request", [run.cpu_us for run in runs])


def decoders(bench: Bench) -> Iterator[Result]:
    """Decoding and validating one request, in this process."""
    ways = {
        "pydantic": PriceRequest.model_validate_json,
        "msgspec": quick.decode_request,
        "unchecked": msgspec.json.decode,
    }
    bodies = bench.bodies[:20_000]
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.rounds):
        for name, way in ways.items():
            began = time.process_time()
            for body in bodies:
                way(body)
            seen[name].append((time.process_time() - began) / len(bodies) * 1e6)
    for name in ways:
        yield result(f"decode with {name}", "µs/request", seen[name], seen["pydantic"], "pydantic")


READS = {
    f.__name__: f
    for f in (quotes, catalogue, ladder, tracing, telemetry, batch, workers, decoders, latency, misses, memory)
}
