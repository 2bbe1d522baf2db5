"""What was used, from the exact rows; and what is missing of them."""

import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from app.adapters.database import make_engine
from app.adapters.record_heads import heads
from app.adapters.record_store import RecordStore
from app.adapters.store import Store
from app.domain.record_gaps import Known, look_for
from app.domain.telemetry import RequestRecord
from app.domain.usage import By, Per, UsageQuestion, UsageRow, Used
from app.errors import InvalidInput
from app.services import usage
from tests.support.records import MS, NOON, SECOND, Source, fields_of, record

DAY0 = datetime(2026, 11, 20, tzinfo=UTC)
WEEK = UsageQuestion(DAY0 - timedelta(days=3), DAY0 + timedelta(days=4), Per.DAY, (), {})
EVERY = (By.KEY, By.USER, By.ROUTE, By.METHOD, By.STATUS)


class Behind:
    """What waits in the stream is so old."""

    def __init__(self, seconds: float = 0) -> None:
        self._seconds = seconds

    def oldest_s(self) -> float:
        return self._seconds


@pytest.fixture(scope="module")
def used(module_database_url: str) -> Iterator[tuple[Store, list[RequestRecord]]]:
    """Two thousand requests of three days around a month's end of another zone, by a few users."""
    chance = random.Random(6)
    records = [
        record(
            NOON + chance.randrange(-36 * 3600, 36 * 3600) * SECOND,
            key_id=chance.choice(["", "k1", "k2", 'ä,"k3"']),
            user_id=chance.choice(["", "u1", "Z", "a"]),
            route=chance.choice(["/api/v1/price", "/api/v1/tasks/{task_id}"]),
            method=chance.choice(["GET", "POST"]),
            status=chance.choice([200, 200, 404, 503]),
            sent_bytes=chance.randrange(10_000),
            latency_ns=chance.randrange(10**9),
        )
        for _ in range(2000)
    ]
    store = Store(make_engine(module_database_url, pool_size=2))
    sink, source = RecordStore(store, 400), Source()
    for at in range(0, len(records), 100):
        sink.write([source.arrival(*records[at : at + 100], arrived_ms=NOON // MS + 200_000_000)])
    yield store, records
    store.close()


def expected(records: list[RequestRecord], question: UsageQuestion) -> list[UsageRow]:
    """The same, counted one by one."""
    groups: dict[tuple[datetime | None, tuple[str, ...]], list[RequestRecord]] = defaultdict(list)
    for each in records:
        at = datetime.fromtimestamp(each.started_at_ns // SECOND, UTC)
        if not question.from_at <= at < question.until_at:
            continue
        if any(str(getattr(each, name)) != value for name, value in question.only.items()):
            continue
        start = {
            Per.HOUR: at.replace(minute=0, second=0),
            Per.DAY: at.replace(hour=0, minute=0, second=0),
            Per.MONTH: at.replace(day=1, hour=0, minute=0, second=0),
            Per.ALL: None,
        }[question.per]
        groups[start, tuple(str(getattr(each, name)) for name in question.by)].append(each)
    return [UsageRow(*key, counted(groups[key])) for key in sorted(groups, key=lambda key: (str(key[0]), key[1]))]


def counted(some: list[RequestRecord]) -> Used:
    return Used(
        len(some),
        sum(each.status >= 500 for each in some),
        sum(each.sent_bytes for each in some),
        round(sum(each.latency_ns for each in some) / len(some) / 1e6, 3),
    )


@pytest.mark.parametrize("per", Per)
@pytest.mark.parametrize("by", [(), (By.KEY,), (By.USER, By.STATUS), (By.ROUTE, By.METHOD), EVERY], ids=str)
def test_usage_is_what_counting_one_by_one_gives(
    used: tuple[Store, list[RequestRecord]], per: Per, by: tuple[By, ...]
) -> None:
    store, records = used
    question = WEEK._replace(per=per, by=by)
    page = usage.page(store, Behind(), question, 0, 10_000)
    assert list(page.rows) == expected(records, question)
    assert page.total == counted(records)
    completeness, rows = usage.stream(store, Behind(), question)
    assert list(rows) == list(page.rows)
    assert (completeness.missing, completeness.gaps) == (0, 0)


@pytest.mark.parametrize(
    "only", [{By.KEY: "k1"}, {By.KEY: ""}, {By.STATUS: "503", By.USER: "a"}, {By.ROUTE: "/api/v1/price"}], ids=str
)
def test_of_some_only(used: tuple[Store, list[RequestRecord]], only: dict[By, str]) -> None:
    store, records = used
    question = UsageQuestion(DAY0, DAY0 + timedelta(hours=20, minutes=30), Per.HOUR, (By.KEY,), only)
    page = usage.page(store, Behind(), question, 0, 10_000)
    assert page.rows
    assert list(page.rows) == expected(records, question)


def test_pages_are_the_whole_and_each_has_the_total(used: tuple[Store, list[RequestRecord]]) -> None:
    store, records = used
    question = WEEK._replace(by=EVERY, per=Per.HOUR)
    rows: list[UsageRow] = []
    while (page := usage.page(store, Behind(), question, len(rows), 300)).rows:
        rows += page.rows
        assert page.total == counted(records)
    assert rows == expected(records, question)


def test_where_nothing_was_used_there_is_nothing(used: tuple[Store, list[RequestRecord]]) -> None:
    store, _ = used
    for per in Per:
        page = usage.page(store, Behind(), WEEK._replace(per=per, only={By.KEY: "nobody"}), 0, 10)
        assert page.rows == []
        assert page.total == Used(0, 0, 0, 0.0)


def test_a_question_that_makes_no_sense_is_refused(used: tuple[Store, list[RequestRecord]]) -> None:
    store, _ = used
    for question in (
        WEEK._replace(until_at=WEEK.from_at),
        WEEK._replace(until_at=WEEK.from_at + timedelta(days=401)),
        WEEK._replace(by=(By.KEY, By.KEY)),
    ):
        with pytest.raises(InvalidInput):
            usage.page(store, Behind(), question, 0, 10)


def test_it_is_complete_until_the_oldest_that_waits(used: tuple[Store, list[RequestRecord]]) -> None:
    store, _ = used
    before = datetime.now(UTC)
    page = usage.page(store, Behind(100), WEEK, 0, 10)
    age = before - page.completeness.complete_until
    assert timedelta(seconds=99) < age <= timedelta(seconds=101)


def test_what_is_missing_is_told_with_when_and_where_it_is(database_url: str, valkey: redis.Redis) -> None:
    store = Store(make_engine(database_url))
    sink = RecordStore(store, 400)
    source, other, silent = Source("api-1"), Source("api-2"), Source("api-3", given=7)
    batches = [source.batch(record(NOON + n * SECOND), record(NOON + n * SECOND)) for n in range(8)]
    arrivals = [Source("api-1", given=batch.first - 1).arrival(*batch.records) for batch in batches]
    sink.write([arrivals[1], arrivals[3], arrivals[7], other.arrival(record()), silent.end(NOON // MS)])
    other.given = 4
    sink.write([other.end(NOON // MS + 9000)])
    valkey.xadd("telemetry", fields_of(batches[4]))
    valkey.xadd("dead", {f"entry:{name}": value for name, value in fields_of(batches[6]).items()})
    with store.transaction() as tx:
        gaps = tx.records.gaps(DAY0, DAY0 + timedelta(days=1), 100)
        assert tx.records.gaps(DAY0 + timedelta(days=1), DAY0 + timedelta(days=2), 100) == []
    store.close()
    assert [(gap.source, gap.first, gap.last, gap.ended) for gap in gaps] == [
        ("api-3", 1, 7, True), ("api-1", 1, 2, False), ("api-1", 5, 6, False), ("api-1", 9, 14, False),
        ("api-2", 2, 4, True),
    ]  # fmt: skip
    noon = DAY0 + timedelta(hours=12)
    assert [(gap.after_at, gap.before_at) for gap in gaps] == [
        (None, noon), (None, noon + timedelta(seconds=1)),
        (noon + timedelta(seconds=1), noon + timedelta(seconds=3)),
        (noon + timedelta(seconds=3), noon + timedelta(seconds=7)),
        (noon, noon + timedelta(seconds=9)),
    ]  # fmt: skip
    parts = look_for(gaps, heads(valkey, "telemetry"), heads(valkey, "dead"))
    assert [(part.gap.source, part.gap.first, part.gap.last, part.where) for part in parts] == [
        ("api-3", 1, 7, Known.NOWHERE), ("api-1", 1, 2, Known.NOWHERE), ("api-1", 5, 6, Known.NOWHERE),
        ("api-1", 9, 10, Known.STREAM), ("api-1", 11, 12, Known.NOWHERE), ("api-1", 13, 14, Known.DEAD_LETTERS),
        ("api-2", 2, 4, Known.NOWHERE),
    ]  # fmt: skip
