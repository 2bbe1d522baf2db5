"""VictoriaMetrics is away under load, and comes back: what readers notice, what memory does, how soon it has all."""

import math
import shutil
import subprocess
import time
from collections.abc import Iterator

import redis

from app.adapters.record_stream import POSTGRESQL, VICTORIAMETRICS
from app.adapters.stream_group import StreamGroup
from loadtests.bench import load, questions
from loadtests.bench.measures import Bench, sizes
from loadtests.bench.results import Result, result
from loadtests.bench.servers import Product
from loadtests.bench.victoria import Victoria
from loadtests.popularity import popularity

RATE_PER_S = 1_000.0
BEFORE_S, AWAY_S, AFTER_S = 60.0, 600.0, 120.0
STREAM = "telemetry"
LOOK_S = 0.2


def outage(bench: Bench) -> Iterator[Result]:
    """VictoriaMetrics is away for ten minutes under load, and comes back."""
    folder = bench.folder / "outage"
    folder.mkdir()
    folder.chmod(0o755)
    victoria = Victoria(folder)
    victoria.start()
    product = Product(folder, "sample", {"PRICING_WORKERS": "2", "PRICING_VICTORIAMETRICS_URL": victoria.url})
    try:
        yield from _measured(bench, product.wait(), victoria)
    finally:
        victoria.stop()
        product.stop()
        shutil.rmtree(folder)


def _measured(bench: Bench, product: Product, victoria: Victoria) -> Iterator[Result]:
    rows = popularity("sample")
    load.closed(product, "/api/v1/prices/batch", _warming(bench, rows), 2, connections=4)
    asked = questions.write(bench.folder / "outage-asked", questions.asked(rows))
    with redis.Redis.from_url(product.stores["PRICING_BROKER_URL"]) as client:
        groups = {sink: StreamGroup(client, STREAM, sink) for sink in (POSTGRESQL, VICTORIAMETRICS)}
        before = load.paced(product, RATE_PER_S, asked, BEFORE_S)
        memory_before = sizes(product)["rss"]
        victoria.stop()
        bench.say(f"VictoriaMetrics is away for {AWAY_S:g} s; before: {before}")
        away, late_s, _ = _watched(product, groups, asked, AWAY_S)
        memory_after = sizes(product)["rss"]
        waiting = groups[VICTORIAMETRICS].account().pending
        bench.say(f"{waiting:,} batches wait for it; meanwhile: {away}")
        victoria.start()
        back, late_back_s, caught_up_s = _watched(product, groups, asked, AFTER_S)
        bench.say(f"back: {back}")
        accounts = {sink: group.account() for sink, group in groups.items()}
    for share in ("p50", "p99"):
        yield result(f"VictoriaMetrics there: {share} at {RATE_PER_S:,.0f}/s", "ms", [before[share]])
        yield result(f"away: {share}", "ms", [away[share]], [before[share]], "there")
        yield result(f"catching up: {share}", "ms", [back[share]], [before[share]], "there")
    grown = [after - was for was, after in zip(memory_before, memory_after, strict=True)]
    yield result(f"growth of an API process in {AWAY_S / 60:g} min of it", "MB", grown)
    yield result("batches that waited for it", "batches", [waiting])
    yield result("until it had them all", "s", [caught_up_s], None, None, "≤ 120", lambda value: value <= 120)
    yield result("oldest batch that waited for PostgreSQL, while away", "s", [late_s])
    yield result("oldest batch that waited for PostgreSQL, while catching up", "s", [late_back_s])
    lost = sum(abs(account.missing) + account.dead for account in accounts.values())
    yield result("batches missing or set aside", "batches", [lost], None, None, "0", lambda value: value == 0)


def _watched(
    product: Product, groups: dict[str, StreamGroup], asked, seconds: float
) -> tuple[dict[str, float], float, float]:
    """The load's latencies; how late PostgreSQL was at worst, and when VictoriaMetrics had all, both in seconds."""
    pacer = load.start_paced(product, RATE_PER_S, asked, seconds)
    began, late_s, caught_up_s = time.monotonic(), 0.0, math.inf
    while True:
        try:
            pacer.wait(LOOK_S)
            break
        except subprocess.TimeoutExpired:
            late_s = max(late_s, groups[POSTGRESQL].lag().oldest_s)
            # New ones come all the time: those of the last moments are no backlog.
            if caught_up_s == math.inf and groups[VICTORIAMETRICS].lag().oldest_s < 5:
                caught_up_s = time.monotonic() - began
    return load.finished(pacer, seconds), late_s, caught_up_s


def _warming(bench: Bench, rows):
    return questions.write(
        bench.folder / "outage-warming", questions.batches([questions.body(row) for row in rows], 500)
    )
