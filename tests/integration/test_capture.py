"""Records on their way into a real stream, over a network that fails: the books are right at every stage."""

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from app.adapters.redis_clients import make_connection
from app.adapters.spill import Spill
from app.adapters.telemetry_stream import TelemetryStream
from app.bootstrap import monotonic_ms, tell_end
from app.domain.client_address import parse_networks
from app.domain.telemetry import RequestRecord, decode_batch
from app.observability import metrics
from app.observability.capture import Capture
from app.observability.notes import Kind, Noted, row
from app.observability.requests import RequestLog
from app.observability.sources import End, Source, left_by
from app.services.breaker import Breaker
from app.settings import Settings
from tests.support.proxy import Proxy, proxy_to
from tests.support.waiting import eventually

STREAM = "telemetry"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-00".encode()
KIND = Kind("GET", "/healthz", 200)
PLACE = 200
MB = 1 << 20


@pytest.fixture
def proxy(valkey_url: str) -> Iterator[Proxy]:
    with proxy_to(urlsplit(valkey_url).port) as proxy:  # type: ignore[arg-type]
        yield proxy


class Process:
    """What an API process has of it; its network is a proxy."""

    def __init__(self, url: str, folder: Path, *, spill_bytes: int = 64 * MB, stream_bytes: int = 64 * MB) -> None:
        self.stream = TelemetryStream(make_connection(url, timeout_s=0.3), STREAM, stream_bytes)
        self.source = Source(PLACE)
        self.spill = Spill(folder, self.source.name, spill_bytes)
        self.capture = Capture(
            self.source,
            self.stream,
            self.spill,
            Breaker("stream", 1, 50, monotonic_ms),
            STREAM,
            parse_networks("10.0.0.0/8"),
        )
        self.log = RequestLog("test", self.capture)
        self.before = counts()
        self.log.start()

    def answer(self, count: int, **also: Any) -> None:
        for _ in range(count):
            self.log.note(time.perf_counter(), KIND, 0.001, TRACEPARENT, **also)

    def stop(self) -> None:
        self.log.stop()
        self.spill.close()
        self.stream.close()

    def counted(self) -> dict[str, float]:
        """Since it began."""
        return {name: count - self.before[name] for name, count in counts().items()}


def counts() -> dict[str, float]:
    counters = {
        "noted": metrics.telemetry_noted,
        "published": metrics.telemetry_published.labels("memory"),
        "replayed": metrics.telemetry_published.labels("spill"),
        "spilled": metrics.telemetry_spilled,
        **{reason: metrics.telemetry_dropped.labels(reason) for reason in ("memory_full", "spill_full", "damaged")},
    }
    return {name: counter._value.get() for name, counter in counters.items()}


@pytest.fixture
def process(valkey_url: str, proxy: Proxy, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    where = urlsplit(valkey_url)
    url = urlunsplit(where._replace(netloc=where.netloc.replace(str(where.port), str(proxy.port))))
    begun: list[Process] = []

    def begin(**limits: int) -> Process:
        begun.append(Process(url, tmp_path / "spill", **limits))
        return begun[-1]

    yield begin
    for each in begun:
        each.stop()


def numbers(valkey: redis.Redis, source: str) -> Counter[int]:
    seen: Counter[int] = Counter()
    for fields in entries(valkey, source):
        if b"batch" in fields:
            batch = decode_batch(fields[b"batch"])
            seen.update(range(batch.first, batch.first + len(batch.records)))
    return seen


def entries(valkey: redis.Redis, source: str) -> list[dict[bytes, bytes]]:
    found: Any = valkey.xrange(STREAM)
    return [fields for _, fields in found if fields[b"source"] == source.encode()]


def ends(valkey: redis.Redis, source: str) -> list[int]:
    return [int(fields[b"ended"]) for fields in entries(valkey, source) if b"ended" in fields]


def test_what_a_request_leaves_is_what_arrives(process: Callable[..., Process], valkey: redis.Redis) -> None:
    api = process()
    before = time.time_ns()
    api.log.note(
        time.perf_counter(), Kind("POST", "/api/v1/price", 200), 0.002, TRACEPARENT, 1, 345, "kEyId", ("10.1.2.3", 1),
        b"198.51.100.1", b"Zo\xc3\xab",
    )  # fmt: skip
    (fields,) = eventually(lambda: entries(valkey, api.source.name))
    (record,) = decode_batch(fields[b"batch"]).records
    assert abs(record.started_at_ns - before) < 10**9
    assert record == RequestRecord(
        record.started_at_ns, 2_000_000, "POST", "/api/v1/price", 200, 345, "198.51.100.1", "kEyId", "Zoë",
        TRACE_ID, False,
    )  # fmt: skip


@pytest.mark.parametrize("trouble", ["cut", "freeze"])
def test_whatever_the_network_does_everything_arrives_and_the_books_are_right(
    process: Callable[..., Process], valkey: redis.Redis, proxy: Proxy, trouble: str
) -> None:
    api = process()
    api.answer(700)
    eventually(lambda: len(numbers(valkey, api.source.name)) == 700)
    getattr(proxy, trouble)()
    for n in range(1, 6):
        api.answer(600)
        eventually(lambda n=n: api.counted()["noted"] == 700 + n * 600)  # type: ignore[misc]
    eventually(lambda: api.spill.records)
    proxy.heal()
    api.answer(100)
    eventually(lambda: set(numbers(valkey, api.source.name)) == set(range(1, 3_801)), timeout_s=20)
    eventually(lambda: not api.spill.records)
    eventually(lambda: api.counted()["replayed"] == api.counted()["spilled"])  # is counted once it is off the disk
    counted = api.counted()
    assert counted["noted"] == 3_800 == counted["published"] + counted["spilled"]
    assert counted["replayed"] == counted["spilled"]
    api.stop()
    assert ends(valkey, api.source.name) == [3_800]
    assert left_by(PLACE) is None, "there is nothing left to tell"


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(
    process: Callable[..., Process], valkey: redis.Redis
) -> None:
    """As a restart does, or a limit for idle ones; nothing takes the way by the disk."""
    api = process()
    for n in range(1, 4):
        api.answer(10)
        eventually(lambda n=n: len(numbers(valkey, api.source.name)) == n * 10)  # type: ignore[misc]
        valkey.client_kill_filter(_type="normal", skipme=True)
    assert api.counted()["spilled"] == 0


def test_a_batch_with_a_gap_says_of_each_side_what_is_its_own(
    process: Callable[..., Process], valkey: redis.Redis
) -> None:
    api = process()
    sampled = TRACEPARENT[:-1] + b"1"
    kinds = [Kind("GET", "/before", 200), Kind("GET", "/after", 404)]
    notes = [(1, kinds[0], sampled), (2, kinds[0], sampled), (4, kinds[1], TRACEPARENT), (5, kinds[1], TRACEPARENT)]
    api.capture.take(
        [
            Noted.of(
                [
                    (row(number, 1.0, 0.001, 0, 0, trace), (kind, "", "", None, None, trace == sampled))
                    for number, kind, trace in notes
                ]
            )
        ]
    )
    first, second = eventually(lambda: len(found := entries(valkey, api.source.name)) == 2 and found)
    assert [b"traceparent" in fields for fields in (first, second)] == [True, False]
    seen = [decode_batch(fields[b"batch"]) for fields in (first, second)]
    assert [(batch.first, [record.route for record in batch.records]) for batch in seen] == [
        (1, ["/before"] * 2), (4, ["/after"] * 2),
    ]  # fmt: skip
    assert api.counted()["memory_full"] == 1


def test_where_the_disk_is_full_too_the_newest_are_dropped_counted_and_one_gap(
    process: Callable[..., Process], valkey: redis.Redis, proxy: Proxy
) -> None:
    api = process(spill_bytes=4_000)
    proxy.cut()
    for n in range(1, 31):
        api.answer(100)
        eventually(lambda n=n: api.counted()["noted"] == n * 100)  # type: ignore[misc]
    eventually(lambda: api.counted()["spill_full"])
    eventually(lambda: sum(api.counted()[fate] for fate in ("published", "spilled", "spill_full")) == 3_000)
    assert api.spill.folder_bytes() <= 4_000
    counted = api.counted()
    proxy.heal()
    eventually(lambda: not api.spill.records)
    kept = numbers(valkey, api.source.name)
    assert sorted(kept) == list(range(1, int(counted["spilled"]) + 1)), "the oldest, without a hole"
    assert counted["noted"] == counted["spilled"] + counted["spill_full"]
    api.answer(10)
    eventually(lambda: set(range(3_001, 3_011)) <= set(numbers(valkey, api.source.name)))


def test_a_stream_that_nobody_reads_is_not_filled_beyond_its_limit(
    process: Callable[..., Process], valkey: redis.Redis
) -> None:
    api = process(stream_bytes=300_000)

    def answer_until_it_is_full() -> int:
        api.answer(20)
        return api.spill.records

    eventually(answer_until_it_is_full, timeout_s=60)
    assert valkey.memory_usage(STREAM) < 600_000  # type: ignore[operator]
    eventually(lambda: api.counted()["noted"] == api.source.numbers[0])

    def read_until_all_is_there() -> bool:
        valkey.xtrim(STREAM, maxlen=0)
        return not api.spill.records

    eventually(read_until_all_is_there, timeout_s=20)
    assert api.counted()["spill_full"] == 0


def test_a_process_that_stops_while_redis_is_away_leaves_all_to_the_next_one(
    process: Callable[..., Process], valkey: redis.Redis, proxy: Proxy
) -> None:
    leaving = process()
    proxy.cut()
    leaving.answer(1_000)
    leaving.stop()
    proxy.heal()
    staying = process()
    eventually(lambda: len(numbers(valkey, leaving.source.name)) == 1_000, timeout_s=20)
    eventually(lambda: ends(valkey, leaving.source.name) == [1_000])
    eventually(lambda: not staying.spill.records)


def test_of_a_process_that_was_killed_the_master_tells_how_far_it_came(
    valkey_url: str, valkey: redis.Redis, proxy: Proxy, tmp_path: Path
) -> None:
    killed = Source(PLACE)
    killed.numbers[0] = 4_711
    end = left_by(PLACE)
    assert end == End(killed.name, 4_711)
    assert left_by(PLACE) is None, "once"
    settings = Settings(_env_file=None, cache_url=valkey_url, telemetry_spill_dir=tmp_path)
    tell_end(settings, end)
    assert ends(valkey, killed.name) == [4_711]


def test_where_redis_is_away_the_master_leaves_that_on_disk(
    process: Callable[..., Process], valkey: redis.Redis, tmp_path: Path
) -> None:
    settings = Settings(_env_file=None, cache_url="redis://127.0.0.1:1/0", telemetry_spill_dir=tmp_path / "spill")
    tell_end(settings, End("killed", 7))
    process()
    eventually(lambda: ends(valkey, "killed") == [7])


def test_whatever_redis_answers_the_master_goes_on_and_leaves_that_on_disk(
    process: Callable[..., Process], valkey_url: str, valkey: redis.Redis, tmp_path: Path
) -> None:
    valkey.set(STREAM, "somebody's own")
    tell_end(Settings(_env_file=None, cache_url=valkey_url, telemetry_spill_dir=tmp_path / "spill"), End("killed", 7))
    valkey.delete(STREAM)
    process()
    eventually(lambda: ends(valkey, "killed") == [7])


def test_nobody_fills_the_memory_with_long_headers(process: Callable[..., Process]) -> None:
    api = process()
    tracemalloc.start()
    try:
        for n in range(300):
            long = b"%06d" % n + b"x" * 100_000
            client = ("10.1.2.3", 1)
            api.log.note(time.perf_counter(), KIND, 0.001, TRACEPARENT, 0, 0, "", client, long + b", 10.9.9.9", long)
        del long
        eventually(lambda: api.counted()["published"] == 300)
        eventually(lambda: tracemalloc.get_traced_memory()[0] < 10 * MB)
    finally:
        tracemalloc.stop()
