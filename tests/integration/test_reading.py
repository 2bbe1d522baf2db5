"""The read path: one load per row, stale rather than broken, nothing past its time."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import urlsplit, urlunsplit

import msgspec
import numpy as np
import psycopg
import pytest
import redis

from app.adapters.price_cache import AsyncPriceCache, PriceCache, clear
from app.adapters.redis_clients import make_async_redis
from app.adapters.store import Store
from app.bootstrap import BREAKER_FAILURES, monotonic_ms, now_ms
from app.domain.columns import Table
from app.domain.rows import LIST_PRICE
from app.domain.sheet import EncodedSheet
from app.errors import Unavailable
from app.services.loading import AT_A_TIME, Found, Loads, Patience
from app.services.reading import SheetReader
from app.services.repricing import current_versions, reprice
from app.services.slots import Name, Slot
from tests.support.proxy import proxy_to
from tests.support.reading import LIFETIMES, Database, make_loads, process
from tests.support.waiting import eventually, soon
from tests.unit.strategies import batch
from tests.unit.strategies import row as inputs

NAME = ("P-1", "NY")
HOUR_MS = 3_600_000
Row = Callable[..., Table]


class Time:
    """Now, and whatever the test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead


@pytest.fixture
def writer(valkey: redis.Redis, store: Store) -> PriceCache:
    return PriceCache(valkey, LIFETIMES, partial(current_versions, store))


@pytest.fixture
def stored(store: Store, row: Row) -> EncodedSheet:
    """P-1 in NY at version 1, in the database alone."""
    with store.transaction() as tx:
        (sheet,) = reprice(tx, row(), "test")
    return sheet


@pytest.fixture
def caches(valkey_url: str) -> Callable[[], AsyncPriceCache]:
    return lambda: AsyncPriceCache(make_async_redis(valkey_url, 5), LIFETIMES)


def on_a_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(run())


def trusting(reader: SheetReader) -> SheetReader:
    """As if a feed had just been heard."""
    reader.heard(monotonic_ms() + HOUR_MS)
    return reader


def calls(valkey: redis.Redis) -> dict[str, int]:
    """Commands that Valkey has executed, by name, but for those that ask."""
    stats = valkey.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: n for name, n in counts.items() if name.split("|")[0] not in ("info", "config", "client", "hello")}


def test_a_thousand_readers_of_a_cold_row_cost_one_load(
    store: Store, stored: EncodedSheet, caches: Callable[[], AsyncPriceCache], valkey: redis.Redis
) -> None:
    """Over eight processes, whose part one event loop plays slowly; the load ends when all of them have missed."""
    slow = Patience(cache=10_000)

    async def storm() -> None:
        own = [caches() for _ in range(8)]
        databases = [Database(store) for _ in own]
        readers = [trusting(SheetReader(make_loads(*pair, patience=slow))) for pair in zip(own, databases, strict=True)]
        for database in databases:
            database.answers.clear()
        asked = [asyncio.create_task(readers[n % 8].find([NAME])) for n in range(1000)]
        await soon(lambda: calls(valkey).get("evalsha", 0) >= 8)
        for database in databases:
            database.answers.set()
        answers = await asyncio.gather(*asked)
        assert {answer[NAME].slot.version for answer in answers} == {stored.version}
        assert sum(len(database.loads) for database in databases) == 1
        assert (await readers[0].find([NAME]))[NAME].source == "cache"
        for cache in own:
            await cache.close()

    valkey.config_resetstat()
    on_a_loop(storm)


def test_a_reader_that_dies_with_the_lease_delays_the_others_by_the_lease_at_most(
    store: Store, stored: EncodedSheet, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def wait_for_the_dead() -> None:
        cache, database = caches(), Database(store)
        ((_, granted),) = await cache.lease([NAME], "dead", now_ms(), 400, early=False)
        assert granted
        reader = SheetReader(make_loads(cache, database))
        began = time.monotonic()
        found = await reader.find([NAME])
        assert 0.3 < time.monotonic() - began < 0.4 + 0.6  # the lease, and a busy machine
        assert (found[NAME].slot.version, len(database.loads)) == (stored.version, 1)
        await cache.close()

    on_a_loop(wait_for_the_dead)


def test_a_product_that_was_unknown_is_known_as_soon_as_it_is_created(
    store: Store, database_url: str, writer: PriceCache, valkey_url: str, row: Row
) -> None:
    name = ("P-9", "NY")
    with process(valkey_url, store) as reading:
        eventually(lambda: reading.find(name).slot.unknown and reading.has_at_hand(name))
        with psycopg.connect(database_url) as connection:
            connection.execute("INSERT INTO products (product_id, name) VALUES ('P-9', 'Nine')")
            connection.execute(
                "INSERT INTO list_prices SELECT product_key, location_key, 100, 0 FROM products, locations"
                " WHERE product_id = 'P-9'"
            )
        with store.transaction() as tx:
            created = reprice(tx, row("P-9", "NY"), "test")
        assert reading.find(name).slot.unknown, "it was not remembered, so nothing was cleared"
        writer.put(created)
        eventually(lambda: not reading.find(name).slot.unknown, timeout_s=1)


def test_who_was_given_a_price_from_the_database_is_not_given_an_older_one_from_the_cache_next(
    store: Store, stored: EncodedSheet, caches: Callable[[], AsyncPriceCache], writer: PriceCache, row: Row
) -> None:
    """A reader loads version 2, which its writer has committed and not put yet. Meanwhile the put of version 1 takes
    the lease away, and another reader of the same process keeps what it finds: version 1."""

    async def overtaken() -> None:
        cache, database = caches(), Database(store)
        reader = trusting(SheetReader(make_loads(cache, database)))
        database.answers.clear()
        first = asyncio.create_task(reader.find([NAME]))
        await soon(lambda: bool(database.loads))
        writer.put([stored])
        (second,) = (await reader.find([NAME])).values()
        assert second.slot.version == stored.version
        with store.transaction() as tx:
            tx.catalog.set_signals(LIST_PRICE, [(*row()[0].item(), 7_00, 1)])
            (newer,) = reprice(tx, row(), "test")
        database.answers.set()
        (given,) = (await first).values()
        (next_,) = (await reader.find([NAME])).values()
        assert (given.slot.version, next_.slot.version) == (newer.version, newer.version)
        (without_near_cache,) = (await SheetReader(make_loads(cache, database, entries=0)).find([NAME])).values()
        assert without_near_cache.slot.version == newer.version
        await cache.close()

    on_a_loop(overtaken)


def test_a_batch_of_a_thousand_is_one_round_trip(caches: Callable[[], AsyncPriceCache], valkey: redis.Redis) -> None:
    (sheet,) = batch([inputs()]).encoded()
    sheets = [msgspec.structs.replace(sheet, product_id=f"P-{n}") for n in range(1000)]
    names: list[Name] = [(sheet.product_id, sheet.location) for sheet in sheets]
    PriceCache(valkey, LIFETIMES, lambda keys: np.full(len(keys), sheet.version)).put(sheets)

    async def ask() -> None:
        cache = caches()
        reader = SheetReader(make_loads(cache, Database(None), patience=Patience(cache=10_000)))
        await reader.find([("P-0", sheet.location)])  # connects
        valkey.config_resetstat()
        found = await reader.find(names)
        assert [found[name].source for name in names] == ["cache"] * 1000
        assert calls(valkey) == {"mget": 1}
        await cache.close()

    on_a_loop(ask)


def test_what_many_miss_at_the_same_time_is_asked_for_together(
    caches: Callable[[], AsyncPriceCache], valkey: redis.Redis
) -> None:
    (sheet,) = batch([inputs()]).encoded()
    sheets = [msgspec.structs.replace(sheet, product_id=f"P-{n}") for n in range(50)]
    names: list[Name] = [(sheet.product_id, sheet.location) for sheet in sheets]
    PriceCache(valkey, LIFETIMES, lambda keys: np.full(len(keys), sheet.version)).put(sheets)

    async def ask() -> None:
        cache = caches()
        reader = trusting(SheetReader(make_loads(cache, Database(None), patience=Patience(cache=10_000))))
        await reader.bring([("P-0", sheet.location)])  # connects
        valkey.config_resetstat()
        await asyncio.gather(*(reader.bring([name]) for name in names))
        assert all(reader.near.fresh(name, now_ms()) for name in names)
        assert calls(valkey) == {"mget": 1}
        first = asyncio.create_task(reader.bring(names[:1]))
        await asyncio.sleep(0)  # its question is on its way
        await asyncio.sleep(0)
        later = [asyncio.create_task(reader.bring([name])) for name in names]
        await asyncio.gather(first, *later)
        assert calls(valkey) == {"mget": 3}
        await cache.close()

    on_a_loop(ask)


async def all_on_their_way(loads: Loads, database: Database) -> list[asyncio.Future[Found]]:
    """As many loads as there may be at a time, which wait for the database."""
    database.answers.clear()
    futures: list[asyncio.Future[Found]] = []
    for n in range(AT_A_TIME):
        futures += loads.start([(f"first-{n}", "NY")]).values()
        await soon(lambda: len(database.loads) == n + 1)  # noqa: B023 - called at once
    return futures


def test_what_is_missed_while_loads_are_on_their_way_is_loaded_together(
    store: Store, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        cache, database = caches(), Database(store)
        loads = make_loads(cache, database)
        futures = await all_on_their_way(loads, database)
        names: list[Name] = [(f"later-{n}", "NY") for n in range(30)]
        for name in names:
            futures += loads.start([name]).values()
        futures += loads.start(names[10:20]).values()
        database.answers.set()
        assert all(found.slot.unknown for found in await asyncio.gather(*futures))
        assert database.loads[AT_A_TIME:] == [names]
        await cache.close()

    on_a_loop(ask)


def test_those_who_wait_go_before_those_who_refresh_and_each_kind_together(
    store: Store, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        cache, database = caches(), Database(store)
        loads = make_loads(cache, database)
        futures = await all_on_their_way(loads, database)
        waited: list[Name] = [(f"wait-{n}", "NY") for n in range(20)]
        refreshed: list[Name] = [(f"refresh-{n}", "NY") for n in range(20)]
        for wait, refresh in zip(waited, refreshed, strict=True):
            futures += loads.start([refresh], early=True).values()
            futures += loads.start([wait]).values()
        database.answers.set()
        await asyncio.gather(*futures)
        assert database.loads[AT_A_TIME:] == [waited, refreshed]
        await cache.close()

    on_a_loop(ask)


def test_the_defect_of_one_row_is_nobody_elses(store: Store, caches: Callable[[], AsyncPriceCache]) -> None:
    bad: Name = ("P-bad", "NY")

    class Defective(Database):
        async def load(self, names: Sequence[Name]) -> dict[Name, Slot]:
            found = await super().load(names)
            if bad in names:
                raise ValueError("a defect")
            return found

    async def ask() -> None:
        cache, database = caches(), Defective(store)
        loads = make_loads(cache, database, patience=Patience(lease=10**6))  # the others wait for none of it
        names: list[Name] = [("P-3", "NY"), ("P-4", "NY"), bad, ("P-5", "NY")]
        futures = {name: loads.start([name])[name] for name in names}
        await asyncio.wait(futures.values())
        assert [name for name in names if futures[name].exception() is not None] == [bad]
        assert isinstance(futures[bad].exception(), ValueError)
        assert sorted(database.loads[0]) == sorted(names)
        await cache.close()

    on_a_loop(ask)


def test_a_row_that_is_gone_when_it_is_computed_takes_no_other_with_it(
    store: Store, caches: Callable[[], AsyncPriceCache]
) -> None:
    class Losing(Database):
        async def load(self, names: Sequence[Name]) -> dict[Name, Slot]:
            return {name: slot for name, slot in (await super().load(names)).items() if name[0] != "P-gone"}

    async def ask() -> None:
        cache = caches()
        reader = SheetReader(make_loads(cache, Losing(store)))
        found = await reader.find_each([("P-gone", "NY"), ("P-none", "NY")])
        assert isinstance(found["P-gone", "NY"], Unavailable)
        assert isinstance(found["P-none", "NY"], Found)
        await cache.close()

    on_a_loop(ask)


def test_who_keeps_nothing_at_hand_has_nothing_brought(
    store: Store, caches: Callable[[], AsyncPriceCache], valkey: redis.Redis
) -> None:
    async def ask() -> None:
        cache, database = caches(), Database(store)
        reader = trusting(SheetReader(make_loads(cache, database, entries=0)))
        valkey.config_resetstat()
        assert await reader.bring([NAME]) == ()
        assert (calls(valkey), database.loads) == ({}, [])
        await cache.close()

    on_a_loop(ask)


def test_what_nobody_knows_is_brought_from_the_database_and_what_was_known_is_left(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    """Of what is known there is a stale price, and `find` knows when to give that."""

    async def ask() -> None:
        clock, cache, database = Time(), caches(), Database(store)
        reader = trusting(SheetReader(make_loads(cache, database, clock=clock)))
        writer.put([stored])
        clock.ahead = HOUR_MS
        never: Name = ("P-2", "NY")
        assert await reader.bring([NAME, never]) == {never}
        assert database.loads == [[never]]
        assert reader.near.fresh(NAME, clock()) is None
        await cache.close()

    on_a_loop(ask)


def test_a_load_belongs_to_the_trace_of_who_asked_first_for_what_is_in_it(
    caches: Callable[[], AsyncPriceCache],
) -> None:
    who = contextvars.ContextVar[str]("who")
    seen: list[str] = []

    class Remembering(Database):
        async def load(self, names: Sequence[Name]) -> dict[Name, Slot]:
            seen.append(who.get())
            return await super().load(names)

    async def ask() -> None:
        cache, database = caches(), Remembering(None)
        loads = make_loads(cache, database)
        database.answers.clear()
        futures: list[asyncio.Future[Found]] = []
        for n in range(AT_A_TIME + 2):
            who.set(f"request {n}")
            futures += loads.start([(f"P-{n}", "NY")]).values()
            await soon(lambda: len(database.loads) == min(n + 1, AT_A_TIME))  # noqa: B023 - called at once
        database.answers.set()
        await asyncio.gather(*futures, return_exceptions=True)
        assert seen == [f"request {n}" for n in range(AT_A_TIME + 1)]
        await cache.close()

    on_a_loop(ask)


def test_rows_that_cannot_be_read_are_no_reason_to_refuse_the_others(
    stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    known, unknown = NAME, ("P-none", "NY")
    writer.put([stored])

    async def ask() -> None:
        cache = caches()
        found = await SheetReader(make_loads(cache, Database(None))).find_each([unknown, known])
        assert isinstance(found[unknown], Unavailable)
        assert isinstance(found[known], Found)
        await cache.close()

    on_a_loop(ask)


def test_a_hot_row_is_refreshed_before_it_expires_by_one_load(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        clock = Time()
        writer.put([stored])
        own = [caches() for _ in range(3)]
        databases = [Database(store, clock) for _ in own]
        readers = [
            trusting(SheetReader(make_loads(cache, database, clock=clock)))
            for cache, database in zip(own, databases, strict=True)
        ]
        before = [(await reader.find([NAME]))[NAME] for reader in readers]
        clock.ahead = before[0].slot.fresh_until - now_ms() - 1000
        for entry in [reader.near.fresh(NAME, clock()) for reader in readers]:
            assert entry is not None
            entry.refresh_at = clock()
        found = [(await reader.find([NAME]))[NAME] for reader in readers for _ in range(20)]
        assert {answer.source for answer in found} == {"cache"}
        await soon(lambda: sum(len(database.loads) for database in databases) == 1)
        clock.ahead += 1001  # what was there before has expired

        async def refreshed() -> bool:
            slots = await own[0].get([NAME])
            return slots[0] is not None and slots[0].fresh_until > clock()

        await soon(refreshed)
        assert [(await reader.find([NAME]))[NAME].source for reader in readers] == ["cache"] * 3
        assert sum(len(database.loads) for database in databases) == 1
        for cache in own:
            await cache.close()

    on_a_loop(ask)


@pytest.mark.parametrize("entries", [0, 10], ids=["in Valkey", "at hand"])
def test_a_sheet_is_never_fresh_past_its_validity(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache], entries: int
) -> None:
    async def ask() -> None:
        clock, cache, database = Time(), caches(), Database(store)
        until = now_ms() + 20_000
        writer.put([msgspec.structs.replace(stored, valid_until=until)])
        reader = trusting(SheetReader(make_loads(cache, database, entries=entries, clock=clock)))
        assert [(await reader.find([NAME]))[NAME].source for _ in range(3)] == ["cache"] * 3
        clock.ahead = until - now_ms() + 1
        assert (await reader.find([NAME]))[NAME].source == "database"
        await cache.close()

    on_a_loop(ask)


def test_a_process_that_starts_has_what_others_are_asked_for_most_at_hand(
    store: Store, writer: PriceCache, valkey_url: str, valkey: redis.Redis
) -> None:
    other = ("P-2", "NY")
    with process(valkey_url, store) as first:
        eventually(lambda: first.find(NAME).source == "cache" and first.has_at_hand(NAME))
        eventually(lambda: first.find(NAME) and valkey.zscore("hot_prices", "NY/P-1"))
        assert first.find(other)
    with process(valkey_url, store) as second:
        eventually(lambda: second.has_at_hand(NAME))


def test_clearing_also_clears_what_would_be_served_stale(
    store: Store, stored: EncodedSheet, writer: PriceCache, valkey_url: str, valkey: redis.Redis
) -> None:
    writer.put([stored])
    with process(valkey_url, store) as reading:
        eventually(lambda: reading.find(NAME).source == "cache" and reading.has_at_hand(NAME))
        assert clear(valkey) == 1
        eventually(lambda: reading.call(lambda: reading.near.last_known(NAME)) is None, timeout_s=1)
        reading.database.fails = True
        with pytest.raises(Unavailable):
            reading.find(NAME)


def test_a_known_price_is_served_stale_when_the_database_fails_and_fresh_when_it_is_back(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        clock, cache, database = Time(), caches(), Database(store)
        reader = SheetReader(make_loads(cache, database, clock=clock, patience=Patience(lease=200, throttle=500)))
        writer.put([stored])
        clock.ahead = HOUR_MS
        database.fails = True
        answers = [(await reader.find([NAME]))[NAME] for _ in range(200)]
        assert {(answer.source, answer.slot.version) for answer in answers} == {("stale", stored.version)}
        assert len(database.loads) < 10, "the refresh throttle holds the loads back"
        with pytest.raises(Unavailable):
            await reader.find([("P-2", "NY")])
        database.fails = False

        async def fresh() -> bool:
            return (await reader.find([NAME]))[NAME].source != "stale"

        await soon(fresh, timeout_s=5)
        await cache.close()

    on_a_loop(ask)


def test_a_slow_database_is_waited_for_briefly_where_a_stale_price_is_at_hand_and_longer_where_none_is(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        clock, cache, database = Time(), caches(), Database(store)
        reader = SheetReader(make_loads(cache, database, clock=clock, patience=Patience(soft=50, hard=600)))
        writer.put([stored])
        clock.ahead = HOUR_MS
        database.answers.clear()
        began = time.monotonic()
        assert (await reader.find([NAME]))[NAME].source == "stale"
        assert time.monotonic() - began < 0.5
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await reader.find([("P-2", "NY")])
        assert 0.5 < time.monotonic() - began < 1.2
        await cache.close()

    on_a_loop(ask)


def test_a_load_that_was_not_waited_for_ends_in_the_background(
    store: Store, stored: EncodedSheet, writer: PriceCache, caches: Callable[[], AsyncPriceCache]
) -> None:
    async def ask() -> None:
        clock, cache = Time(), caches()
        database = Database(store, clock)
        reader = SheetReader(make_loads(cache, database, clock=clock, patience=Patience(soft=20)))
        writer.put([stored])
        clock.ahead = HOUR_MS
        database.answers.clear()
        assert (await reader.find([NAME]))[NAME].source == "stale"
        database.answers.set()

        async def source() -> str | None:
            answer = (await reader.find([NAME]))[NAME].source
            return None if answer == "stale" else answer

        assert (await soon(source), len(database.loads)) == ("cache", 1)
        await cache.close()

    on_a_loop(ask)


def test_the_cache_is_used_again_soon_after_an_outage_however_many_ask_meanwhile(
    store: Store, stored: EncodedSheet, writer: PriceCache, valkey_url: str
) -> None:
    writer.put([stored])
    url = urlsplit(valkey_url)
    with proxy_to(url.port or 0) as proxy:
        through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))

        async def ask() -> None:
            cache = AsyncPriceCache(make_async_redis(through, 1), LIFETIMES)
            reader = SheetReader(make_loads(cache, Database(store)))
            assert (await reader.find([NAME]))[NAME].source == "cache"
            proxy.cut()
            for _ in range(2 * BREAKER_FAILURES):
                assert (await reader.find([NAME]))[NAME].source == "database"
            proxy.heal()

            async def used() -> bool:
                return (await reader.find([NAME]))[NAME].source == "cache"

            await soon(used, timeout_s=5)
            await cache.close()

        on_a_loop(ask)


def test_a_row_that_is_no_longer_sold_is_remembered_as_unknown(
    store: Store, stored: EncodedSheet, writer: PriceCache, database_url: str, caches: Callable[[], AsyncPriceCache],
    valkey: redis.Redis,
) -> None:  # fmt: skip
    """Briefly: names that do not exist are endless, and must not fill the cache."""

    async def ask() -> None:
        clock, cache = Time(), caches()
        writer.put([stored])
        with psycopg.connect(database_url) as connection:
            connection.execute("DELETE FROM list_prices")
        clock.ahead = HOUR_MS
        database = Database(store, clock)
        reader = SheetReader(make_loads(cache, database, clock=clock))
        answers = [(await reader.find([NAME]))[NAME] for _ in range(3)]
        assert [(answer.slot.unknown, answer.source) for answer in answers] == [
            (True, "database"),
            (True, "cache"),
            (True, "cache"),
        ]
        assert len(database.loads) == 1
        assert 0 < valkey.pttl("price:NY/P-1") < 2 * LIFETIMES.unknown_s * 1000
        await cache.close()

    on_a_loop(ask)
