"""From the stream of request records into both sinks: by hints of a listener, in a worker, each sink for itself."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
from celery.contrib.testing.worker import start_worker

from app.adapters.breakers import SINKS as SINK_BREAKERS
from app.adapters.record_stream import POSTGRESQL, VICTORIAMETRICS, RecordStream
from app.adapters.task_names import TELEMETRY_QUEUE
from app.adapters.task_queue import make_celery
from app.adapters.victoriametrics import BYTES
from app.bootstrap import Resources
from app.domain.telemetry import RecordBatch
from app.settings import Settings
from listener.loop import Loop
from tests.support.records import MS, NOON, Source, fields_of, record
from tests.support.resources import opened
from tests.support.victoriametrics import Victoria, victoria_metrics
from tests.support.waiting import eventually
from workers import tasks

Count = Callable[[], int]


@pytest.fixture(scope="module")
def victoria() -> Iterator[Victoria]:
    with victoria_metrics() as victoria:
        yield victoria


@pytest.fixture
def settings(database_url: str, valkey_url: str, victoria: Victoria) -> Settings:
    return Settings(
        database_url=database_url, cache_url=valkey_url, victoriametrics_url=victoria.url, poll_interval_s=0.02
    )


@pytest.fixture
def resources(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Resources]:
    with opened(settings) as resources:
        monkeypatch.setattr("workers.base.resources", lambda: resources)
        monkeypatch.setattr("workers.tasks.resources", lambda: resources)
        yield resources
        resources.record_sinks.close()


@contextmanager
def running(resources: Resources, valkey_url: str) -> Iterator[None]:
    """A listener, and a worker that takes this queue."""
    application = make_celery(valkey_url)
    tasks.register(application)
    stopping, ring = threading.Event(), threading.Event()
    loop = threading.Thread(target=Loop(resources, "me", ring, stopping).run)
    with start_worker(application, perform_ping_check=False, shutdown_timeout=30, queues=[TELEMETRY_QUEUE]):
        loop.start()
        try:
            yield
        finally:
            stopping.set()
            ring.set()
            loop.join()


@pytest.fixture
def rows(database_url: str) -> Iterator[Count]:
    with psycopg.connect(database_url, autocommit=True) as connection:

        def count() -> int:
            found: Any = connection.execute(
                "SELECT count(*), count(DISTINCT (source_key, sequence)) FROM request_records"
            )
            total, distinct = found.fetchone()
            assert total == distinct
            return int(total)

        yield count


def add(valkey: redis.Redis, *batches: RecordBatch) -> None:
    for batch in batches:
        valkey.xadd("telemetry", fields_of(batch))


def points(victoria: Victoria, source: Source) -> int:
    return sum(len(each["values"]) for each in victoria.series(f'{BYTES}{{source="{source.name}"}}'))


def test_both_sinks_get_everything_and_then_the_stream_is_trimmed(
    resources: Resources, valkey: redis.Redis, valkey_url: str, victoria: Victoria, rows: Count
) -> None:
    source = Source("both")
    add(valkey, *(source.batch(*[record(NOON + (at + n) * MS) for n in range(50)]) for at in range(0, 500, 50)))
    valkey.xadd("telemetry", {"source": source.name, "ended": source.given})
    with running(resources, valkey_url):
        eventually(lambda: rows() == 500, timeout_s=20)
        eventually(lambda: points(victoria, source) == 500, timeout_s=20)
        eventually(lambda: valkey.xlen("telemetry") == 1, timeout_s=20)  # the last one that was delivered
        add(valkey, source.batch(record(NOON + 500 * MS)))
        eventually(lambda: rows() == 501, timeout_s=20)
        eventually(lambda: points(victoria, source) == 501, timeout_s=20)
    for group in resources.records.groups.values():
        account = group.account()
        assert (account.accepted, account.delivered, account.missing) == (12, 12, 0)
        assert group.records() == 501


def test_a_sink_that_hangs_holds_up_only_itself_and_catches_up(
    resources: Resources, valkey: redis.Redis, valkey_url: str, victoria: Victoria, rows: Count
) -> None:
    source = Source("hangs")
    with running(resources, valkey_url):
        add(valkey, source.batch(record()))
        eventually(lambda: points(victoria, source) == 1, timeout_s=20)
        victoria.tell(signal.SIGSTOP)
        try:
            for n in range(6):
                add(valkey, source.batch(*[record(NOON + (n + 1) * 1000 * MS)] * 10))
                eventually(lambda n=n: rows() == 1 + 10 * (n + 1), timeout_s=40)  # type: ignore[misc]
            assert valkey.xlen("telemetry") >= 6, "nothing is trimmed that one of them has still to write"
        finally:
            victoria.tell(signal.SIGCONT)
        eventually(lambda: points(victoria, source) == 61, timeout_s=60)
        eventually(lambda: valkey.xlen("telemetry") == 1, timeout_s=20)


def test_what_overlaps_is_set_aside_and_billed_by_nobody_twice(
    resources: Resources, valkey: redis.Redis, valkey_url: str, rows: Count
) -> None:
    good, wrong = Source("good"), Source("good", given=3)
    add(valkey, good.batch(*[record()] * 5), wrong.batch(*[record()] * 5))
    good.given = 8
    add(valkey, good.batch(record()))
    group = resources.records.groups[POSTGRESQL]
    with running(resources, valkey_url):
        eventually(lambda: group.account().dead == 1, timeout_s=20)
        eventually(lambda: rows() == 6, timeout_s=20)
    (letter,) = group.letters()
    assert letter.reason == "refused"
    assert "requests 4 to 8 overlap with 1 to 5" in letter.setback.last_error


def test_a_sink_that_nobody_has_configured_any_more_lets_the_stream_go(
    resources: Resources, valkey: redis.Redis, valkey_url: str, rows: Count
) -> None:
    resources.records.ensure()
    without = RecordStream(valkey, "telemetry", [POSTGRESQL])
    assert without.dismiss_unserved() == [], "another listener may still have it"
    valkey.delete(f"telemetry:{VICTORIAMETRICS}:served")
    assert without.dismiss_unserved() == [VICTORIAMETRICS]
    assert without.dismiss_unserved() == []
    groups: Any = valkey.xinfo_groups("telemetry")
    assert [group["name"] for group in groups] == [POSTGRESQL.encode()]


def test_a_sink_that_is_configured_later_begins_with_what_is_there(
    resources: Resources, valkey: redis.Redis, victoria: Victoria
) -> None:
    source = Source("later")
    RecordStream(valkey, "telemetry", [POSTGRESQL]).ensure()
    add(valkey, source.batch(record()))
    resources.records.ensure()
    assert not resources.record_sinks.work(VICTORIAMETRICS, turn_s=5)
    assert points(victoria, source) == 1
    assert resources.records.groups[VICTORIAMETRICS].account().missing == 0


def test_each_sink_has_a_breaker_of_its_own() -> None:
    assert [f"telemetry_{sink}" for sink in (POSTGRESQL, VICTORIAMETRICS)] == list(SINK_BREAKERS)
