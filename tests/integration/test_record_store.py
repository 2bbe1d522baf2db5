"""Records of requests in PostgreSQL: each once, in its day, and what is missing is known."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.adapters.database import make_engine
from app.adapters.record_store import RecordStore
from app.adapters.store import Store
from app.domain.arrivals import Arrival
from app.domain.telemetry import RecordBatch
from app.errors import InvalidInput
from app.pipeline.sinks import Sink
from tests.support.proxy import Proxy, proxy_to
from tests.support.records import DAY, MS, NOON, SECOND, Source, record
from tests.support.sink_contract import SinkContract
from tests.support.waiting import eventually

KEPT_DAYS = 400
Sql = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(make_engine(database_url, pool_size=4))
    yield store
    store.close()


@pytest.fixture
def records(store: Store) -> RecordStore:
    return RecordStore(store, KEPT_DAYS)


@pytest.fixture
def sql(database_url: str) -> Iterator[Sql]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield (
            lambda statement: (
                connection.execute("SET timezone = 'UTC'") and connection.execute(statement.encode()).fetchall()
            )
        )


RANGES = "SELECT source, first, last FROM record_ranges JOIN record_sources USING (source_key) ORDER BY 1, 2"
NUMBERS = "SELECT sequence FROM request_records ORDER BY sequence"


def test_a_record_is_a_row_with_all_that_is_known_of_it(records: RecordStore, sql: Sql) -> None:
    source = Source("host:7:1")
    odd = record(
        NOON + 1_234_567, user_id='tab\t"quote" \\N back\\slash\nnul\0 ü€😀', trace_id="", key_id="", sampled=True
    )
    records.write([source.arrival(record(NOON), odd)])
    assert sql(
        "SELECT started_at, latency_ns, sequence, sent_bytes, status, sampled, trace_id, method, route, client, key_id,"
        " user_id, source, process_id FROM request_records JOIN record_sources USING (source_key) ORDER BY sequence"
    ) == [
        (
            datetime(2026, 11, 20, 12, tzinfo=UTC), 2 * MS, 1, 345, 200, False,
            UUID("4bf92f3577b34da6a3ce929d0e0e4736"), "POST", "/api/v1/price", "192.0.2.7", "key_1", "u-1",
            "host:7:1", 4711,
        ),
        (
            datetime(2026, 11, 20, 12, 0, 0, 1234, tzinfo=UTC), 2 * MS, 2, 345, 200, True, None, "POST",
            "/api/v1/price", "192.0.2.7", "", 'tab\t"quote" \\N back\\slash\nnul\ufffd ü€😀', "host:7:1", 4711,
        ),
    ]  # fmt: skip


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_out_as_it_went_in(text: str, records: RecordStore, sql: Sql) -> None:
    source = Source(f"{text}:{sql('SELECT count(*) FROM record_sources')}")
    records.write([source.arrival(record(route=text, client=text, key_id=text, user_id=text))])
    assert sql(
        "SELECT route, client, key_id, user_id, source FROM request_records JOIN record_sources USING (source_key)"
        " ORDER BY source_key DESC LIMIT 1"
    ) == [(text, text, text, text, source.name)]


def test_what_comes_again_changes_nothing_alone_or_with_others(records: RecordStore, sql: Sql) -> None:
    source = Source()
    first, second, third = (source.arrival(record(), record()) for _ in range(3))
    records.write([first])
    records.write([first, second])
    records.write([third, second, first, third])
    assert sql(NUMBERS) == [(n,) for n in range(1, 7)]
    assert sql(RANGES) == [("api-1", 1, 6)]


def test_what_is_missing_shows_until_it_comes(records: RecordStore, sql: Sql) -> None:
    source, other = Source(), Source("api-2")
    arrivals = [source.arrival(record(), record(), record()) for _ in range(4)]
    records.write([arrivals[3], arrivals[0], other.arrival(record())])
    assert sql(RANGES) == [("api-1", 1, 3), ("api-1", 10, 12), ("api-2", 1, 1)]
    records.write([arrivals[2]])
    assert sql(RANGES) == [("api-1", 1, 3), ("api-1", 7, 12), ("api-2", 1, 1)]
    records.write([arrivals[1]])
    assert sql(RANGES) == [("api-1", 1, 12), ("api-2", 1, 1)]


def test_batches_that_overlap_are_refused_and_nothing_with_them_is_half_written(records: RecordStore, sql: Sql) -> None:
    source = Source()
    records.write([source.arrival(record(), record(), record())])
    overlapping = Source(given=1).arrival(record(), record(), record())
    innocent = Source("api-2").arrival(record())
    with pytest.raises(InvalidInput, match="requests 2 to 4 overlap with 1 to 3"):
        records.write([innocent, overlapping])
    assert sql(RANGES) == [("api-1", 1, 3)]
    assert sql(NUMBERS) == [(1,), (2,), (3,)]


def test_two_who_write_the_same_at_once_write_it_once(store: Store, sql: Sql) -> None:
    sources = [Source(f"api-{nth}") for nth in range(3)]
    arrivals = [source.arrival(*[record()] * 20) for _ in range(30) for source in sources]
    failed: list[Exception] = []

    def write(mine: list[Arrival]) -> None:
        sink = RecordStore(store, KEPT_DAYS)
        try:
            for at in range(0, len(mine), 4):
                sink.write(mine[at : at + 4])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[some]) for some in (arrivals, arrivals[::-1], arrivals[7:60])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sql(RANGES) == [(f"api-{nth}", 1, 600) for nth in range(3)]
    assert sql("SELECT count(*), count(DISTINCT (source_key, sequence)) FROM request_records") == [(1800, 1800)]


def test_every_day_has_its_partition_also_one_long_past(records: RecordStore, sql: Sql) -> None:
    source = Source()
    midnight = NOON + DAY // 2
    records.write([source.arrival(record(midnight - 1000), record(midnight))])
    records.write([source.arrival(record(NOON - 30 * DAY), arrived_ms=NOON // MS)])
    assert sql("SELECT tableoid::regclass::text, sequence FROM request_records ORDER BY sequence") == [
        ("request_records_20261120", 1), ("request_records_20261121", 2), ("request_records_20261021", 3),
    ]  # fmt: skip


def test_a_clock_of_another_year_makes_no_partition_but_is_billed_where_it_arrived(
    records: RecordStore, sql: Sql
) -> None:
    arrived_ms = NOON // MS
    records.write([Source().arrival(record(0), record(7_258_118_400 * SECOND), record(), arrived_ms=arrived_ms)])
    assert sql("SELECT DISTINCT started_at, count(*) FROM request_records GROUP BY 1") == [
        (datetime(2026, 11, 20, 12, tzinfo=UTC), 3)
    ]


def test_partitions_are_made_ahead_and_dropped_with_what_was_known_of_them(store: Store, sql: Sql) -> None:
    now = datetime.now(UTC)
    records = RecordStore(store, kept_days=5)
    now_ns = int(now.timestamp()) * SECOND
    source, done = Source(), Source("api-2")
    old = [source.arrival(record(now_ns - 10 * DAY), arrived_ms=now_ns // MS - 10 * 86_400_000) for _ in range(3)]
    records.write([old[0], old[2], done.arrival(record(now_ns - 9 * DAY), arrived_ms=now_ns // MS - 9 * 86_400_000)])
    records.write([source.arrival(record(now_ns - 2 * DAY))])
    records.keep_up()
    today = now.date()
    days = {date.fromisoformat(name.rpartition("_")[2]) for (name,) in sql(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'request_records'::regclass"
    )}  # fmt: skip
    assert days - {today - timedelta(days=2)} == {today + timedelta(days=ahead) for ahead in range(3)}
    assert sql(NUMBERS) == [(4,)]
    assert sql("SELECT source, forgotten_sequence FROM record_sources") == [("api-1", 1)], (
        "the other is forgotten whole"
    )
    assert sql(RANGES) == [("api-1", 3, 4)]
    records.write([old[0]])
    assert sql(NUMBERS) == [(4,)], "what was forgotten is not counted again"


def test_a_partition_that_went_meanwhile_is_made_again(records: RecordStore, sql: Sql, database_url: str) -> None:
    source = Source()
    records.write([source.arrival(record())])
    with psycopg.connect(database_url) as connection:
        connection.execute("DROP TABLE request_records_20261120")
    records.write([source.arrival(record())])
    assert sql(NUMBERS) == [(2,)]


def test_dropping_waits_for_no_reader_for_long(store: Store, database_url: str) -> None:
    """A bill that is being computed holds the partitions; retention comes another time."""
    records = RecordStore(store, kept_days=5)
    now_ms = int(datetime.now(UTC).timestamp() * 1000) - 10 * 86_400_000
    records.write([Source().arrival(record(now_ms * MS), arrived_ms=now_ms)])
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM request_records")
        with pytest.raises(Exception, match="lock timeout"):
            records.keep_up()
    eventually(lambda: records.keep_up() is None, timeout_s=10)


def test_the_end_of_a_source_is_known_even_where_nothing_of_it_came(records: RecordStore, sql: Sql) -> None:
    source = Source(given=17)
    records.write([source.end()])
    records.write([Source("api-2").arrival(record()), Source("api-2", given=1).end(), source.end()])
    assert sql("SELECT source, process_id, ended_sequence FROM record_sources ORDER BY 1") == [
        ("api-1", None, 17), ("api-2", 4711, 1),
    ]  # fmt: skip


class _Arriving:
    """Batches as they come out of the stream."""

    def __init__(self, sink: RecordStore) -> None:
        self._sink = sink

    def write(self, items: Sequence[RecordBatch]) -> None:
        self._sink.write([Arrival(time.time_ns() // MS, batch) for batch in items])


class _PostgreSql:
    def __init__(self, url: str, proxy: Proxy, database_url: str) -> None:
        self._store = Store(make_engine(url, pool_size=4, answer_s=2))
        self._proxy, self._database_url = proxy, database_url

    def open(self) -> Sink[RecordBatch]:
        return _Arriving(RecordStore(self._store, KEPT_DAYS))

    def written(self) -> Counter[str]:
        with psycopg.connect(self._database_url) as connection:
            return Counter(user for (user,) in connection.execute("SELECT user_id FROM request_records"))

    @contextmanager
    def away(self) -> Iterator[None]:
        self._proxy.cut()
        yield
        self._proxy.heal()

    def close(self) -> None:
        self._store.close()


class TestPostgreSql(SinkContract):
    @pytest.fixture
    def end(self, database_url: str) -> Iterator[_PostgreSql]:  # type: ignore[override]
        where = urlsplit(database_url)
        folder = parse_qs(where.query)["host"][0]
        with proxy_to(Path(folder) / ".s.PGSQL.5432") as proxy:
            end = _PostgreSql(f"postgresql://postgres@127.0.0.1:{proxy.port}{where.path}", proxy, database_url)
            yield end
            end.close()
