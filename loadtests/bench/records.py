"""Records of requests from the stream into their sinks, by one process; beside each, what the sink could do alone."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx
import msgspec
import psycopg
import redis

from app.adapters.record_rows import COLUMNS, rows_of
from app.adapters.record_stream import POSTGRESQL, VICTORIAMETRICS
from app.adapters.victoriametrics import lines_of
from app.domain.telemetry import MOST_RECORDS, RecordBatch, RequestRecord, encode_batch
from app.record_sinks import BATCH
from loadtests.bench.measures import Bench
from loadtests.bench.results import Result, figure, result
from loadtests.bench.servers import ROOT
from loadtests.bench.victoria import Victoria, program

TURN_S = 1.0
STREAM = "bench-telemetry"
BATCHES, QUICK_BATCHES, ROUNDS = 2_000, 400, 3
PER_S = {POSTGRESQL: 100_000, VICTORIAMETRICS: 60_000}
KEYS, USERS, CLIENTS = 200, 20_000, 2_000
SOURCES = 4
ROUND_NS = 600 * 10**9


def records(bench: Bench) -> Iterator[Result]:
    """A backlog of request records is written, by one process, to PostgreSQL and to VictoriaMetrics."""
    batches = made(QUICK_BATCHES if bench.quick else BATCHES)
    total = sum(len(batch.records) for batch in batches)
    stores = bench.product.stores
    with redis.Redis.from_url(stores["PRICING_BROKER_URL"]) as client, victoria(bench) as url:
        alone = {POSTGRESQL: copied(stores, batches)}
        if url is not None:
            alone[VICTORIAMETRICS] = posted(url, batches)
        rates: dict[str, list[float]] = {sink: [] for sink in alone}
        limits: dict[str, list[float]] = {sink: [] for sink in alone}
        used_us: dict[str, list[float]] = {sink: [] for sink in alone}
        for number in range(ROUNDS):
            for sink in alone:
                fill(client, batches, number)
                seconds, used_s = consumed(stores, sink, url)
                rates[sink].append(total / seconds)
                used_us[sink].append(used_s / total * 1e6)
                limits[sink].append(alone[sink]())
            forget(client, stores)
        for sink, its in rates.items():
            bench.say(f"{sink}: {', '.join(map(figure, its))} records a second")
            least = PER_S[sink]
            yield result(
                f"records into {sink}, one process", "records/s", its,
                target=f"≥ {least:,}", holds=lambda value, least=least: value >= least,
            )  # fmt: skip
            yield result(f"records into {sink}: processor time of that process", "us per record", used_us[sink])
            yield result(f"the same into {sink} alone", "records/s", limits[sink], its, "with all before it")


def made(count: int) -> list[RecordBatch]:
    """As many processes write them that are asked by many users of many keys."""
    chance, now = random.Random(6), time.time_ns()
    asked = [
        ("POST", chance.choice(["/api/v1/price", "/api/v1/prices/batch"]), f"10.0.{n % 250}.{n % CLIENTS // 250}",
         f"key{n % KEYS:09}", f"user-{n}")
        for n in range(USERS)
    ]  # fmt: skip
    batches = []
    for number in range(count):
        source, first = number % SOURCES, number // SOURCES * MOST_RECORDS + 1
        some = []
        for nth in range(MOST_RECORDS):
            method, route, client, key_id, user_id = chance.choice(asked)
            started = now + (first + nth) * 100_000
            trace_id = f"{chance.getrandbits(128):032x}"
            some.append(
                RequestRecord(started, 300_000, method, route, 200, 345, client, key_id, user_id, trace_id, False)
            )
        batches.append(RecordBatch(f"bench-{source}", 1, first, some, some[0].started_at_ns))
    return batches


def fill(client: redis.Redis, batches: Sequence[RecordBatch], number: int) -> None:
    """The stream, anew. In each round the same processes, whose numbers and clocks go on."""
    client.delete(STREAM)
    for at in range(0, len(batches), 100):
        pipeline = client.pipeline(transaction=False)
        for batch in batches[at : at + 100]:
            first = batch.first + number * len(batches) * MOST_RECORDS
            later_ns = number * ROUND_NS
            some = [msgspec.structs.replace(r, started_at_ns=r.started_at_ns + later_ns) for r in batch.records]
            own = RecordBatch(batch.source, 1, first, some, batch.answered_before_ns + later_ns)
            fields = {"source": own.source, "first": own.first, "count": len(own.records), "batch": encode_batch(own)}
            pipeline.xadd(STREAM, fields)
        pipeline.execute()


def consumed(stores: Mapping[str, str], sink: str, url: str | None) -> tuple[float, float]:
    """How many seconds a process of its own took for all, and how many of them it used a processor."""
    env = {**os.environ, **stores, "PRICING_TELEMETRY_STREAM": STREAM}
    if url is not None:
        env["PRICING_VICTORIAMETRICS_URL"] = url
    command = [sys.executable, "-m", "loadtests.bench.consumer", sink]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"the consumer failed: {done.stderr[-2000:]}")
    seconds, used_s = map(float, done.stdout.split()[-2:])
    return seconds, used_s


def copied(stores: Mapping[str, str], batches: Sequence[RecordBatch]):
    """COPY alone: rows that are ready, into a table with the same index."""
    rows = [rows_of(batch, 1, [record.started_at_ns // 1000 for record in batch.records]) for batch in batches]

    def run() -> float:
        with psycopg.connect(stores["PRICING_DATABASE_URL"], autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS bench_records")
            connection.execute("CREATE TABLE bench_records (LIKE request_records INCLUDING ALL)")
            began = time.perf_counter()
            for at in range(0, len(rows), BATCH):
                statement = f"COPY bench_records ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
                with connection.cursor().copy(statement) as copy:
                    copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"".join(rows[at : at + BATCH]) + b"\xff\xff")
            seconds = time.perf_counter() - began
            connection.execute("DROP TABLE bench_records")
        return len(batches) * MOST_RECORDS / seconds

    return run


def posted(url: str, batches: Sequence[RecordBatch]):
    """Import alone: text that is ready, over one connection."""
    bodies = [
        "".join(
            lines_of(batch, [record.started_at_ns // 1000 for record in batch.records])
            for batch in batches[at : at + BATCH]
        ).encode()
        for at in range(0, len(batches), BATCH)
    ]

    def run() -> float:
        with httpx.Client(base_url=url, timeout=60) as client:
            began = time.perf_counter()
            for body in bodies:
                client.post("/api/v1/import/prometheus", content=body).raise_for_status()
            return len(batches) * MOST_RECORDS / (time.perf_counter() - began)

    return run


def forget(client: redis.Redis, stores: Mapping[str, str]) -> None:
    client.delete(STREAM, *(f"{STREAM}:{sink}:tally" for sink in PER_S))
    with psycopg.connect(stores["PRICING_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DELETE FROM request_records WHERE source_key IN (SELECT source_key FROM record_sources"
                           " WHERE source LIKE 'bench-%')")  # fmt: skip
        connection.execute("DELETE FROM record_sources WHERE source LIKE 'bench-%'")


@contextmanager
def victoria(bench: Bench) -> Iterator[str | None]:
    """The address of a VictoriaMetrics; None where there is no such program."""
    if program() is None:
        bench.say("no VictoriaMetrics: `sh deploy/victoriametrics/get.sh` gets it")
        yield None
        return
    server = Victoria(bench.folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()
