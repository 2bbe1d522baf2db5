"""Readers, writers, evictions and expiries against each other, with a pause between every two of their steps.

Real Valkey, real PostgreSQL, the real formula. Every step of every reader and writer waits at a gate that the
test opens in an order that hypothesis chooses; so any interleaving can happen, and a failing one is replayed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.adapters.database import make_engine
from app.adapters.invalidation_feed import tell
from app.adapters.price_cache import INVALIDATIONS, AsyncPriceCache, Lifetimes, PriceCache, slot_key
from app.adapters.redis_clients import make_async_redis, make_redis
from app.adapters.store import Store
from app.domain.columns import ROW_KEYS, Column, Table
from app.domain.rows import LIST_PRICE
from app.domain.sheet import EncodedSheet, decode_sheet
from app.services.breaker import Breaker
from app.services.loading import Loads, Patience
from app.services.near_cache import NearCache
from app.services.quoting import load_slots
from app.services.reading import SheetReader
from app.services.repricing import current_versions, reprice
from app.services.slots import Leased, Name, Slot
from tests.support.stores import Stores

T = TypeVar("T")

NAMES: list[Name] = [("P-1", "NY"), ("P-2", "NY")]
LIFETIMES = Lifetimes(3600, 30, 3600)
PATIENT = Patience(cache=10**6, soft=10**6, hard=10**6, lease=10**6, throttle=0)
PROCESSES, CLIENTS, WRITERS = 3, 2, 2
WITHOUT_NEAR_CACHE = 2
"""The process that keeps nothing: it has to see every acknowledged update at once."""

SEED = """
    INSERT INTO locations (location, name, currency, currency_number, time_zone)
    VALUES ('NY', 'New York', 'USD', 840, 'America/New_York');
    INSERT INTO products (product_id, name) VALUES ('P-1', 'One'), ('P-2', 'Two');
    INSERT INTO list_prices (product_key, location_key, amount, position)
    SELECT product_key, location_key, 100, 0 FROM products, locations;
"""


_who: ContextVar[object] = ContextVar("who", default=None)
"""Whose step it is; a load that a reader begins is its own."""


class Gates:
    """Where every step waits until the test lets it go on."""

    def __init__(self) -> None:
        self._waiting: list[tuple[object, asyncio.Future[None]]] = []
        self.asking = 0
        """How many wait for Redis."""

    async def step(self) -> None:
        gate = asyncio.get_running_loop().create_future()
        self._waiting.append((_who.get(), gate))
        await gate

    async def around(self, work: Awaitable[T]) -> T:
        await self.step()
        self.asking += 1
        result = await work
        self.asking -= 1
        await self.step()
        return result

    async def in_a_thread(self, work: Callable[[], None]) -> None:
        """Work that does not run on the loop; it comes to gates of its own by `stop`."""
        self.asking += 1
        await asyncio.to_thread(work)
        self.asking -= 1

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        async def wait() -> None:
            self.asking -= 1
            await self.step()
            self.asking += 1

        asyncio.run_coroutine_threadsafe(wait(), loop).result()

    def open_one(self, which: int) -> bool:
        if not self._waiting:
            return False
        self._waiting.pop(which % len(self._waiting))[1].set_result(None)
        return True

    def open_for(self, who: object) -> None:
        for waiting in [waiting for waiting in self._waiting if waiting[0] == who]:
            self._waiting.remove(waiting)
            waiting[1].set_result(None)


class GatedCache:
    def __init__(self, cache: AsyncPriceCache, gates: Gates) -> None:
        self._cache, self._gates = cache, gates

    async def get(self, names: list[Name]) -> list[Slot | None]:
        return await self._gates.around(self._cache.get(names))

    async def lease(self, names: list[Name], token: str, now: int, lease_ms: int, *, early: bool) -> list[Leased]:
        return await self._gates.around(self._cache.lease(names, token, now, lease_ms, early=early))

    async def fill(self, slots: dict[Name, Slot], token: str) -> None:
        await self._gates.around(self._cache.fill(slots, token))


class Races(RuleBasedStateMachine):
    """`acknowledged` is what writers were told is done; `delivered` what a process' feed has brought of it."""

    database_url: str
    valkey_url: str
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gates = Gates()
        self.now = 10**12
        self.engine = make_engine(self.database_url)
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("TRUNCATE price_sheets, price_history; UPDATE list_prices SET amount = 100, position = 0")
            )
        self.store = Store(self.engine)
        self.redis = make_redis(self.valkey_url, 5)
        self.redis.flushall()
        self.writer_cache = PriceCache(self.redis, LIFETIMES, self._current_versions)
        self.clients = [make_async_redis(self.valkey_url, 5) for _ in range(PROCESSES)]
        self.feeds: list[redis.client.PubSub] = []
        self.readers = [self._reader(i) for i in range(PROCESSES)]
        self.acknowledged = dict.fromkeys(NAMES, 0)
        self.delivered = [dict.fromkeys(NAMES, 0) for _ in range(PROCESSES)]
        self.seen: dict[tuple[int, int, Name], int] = {}
        self.tasks: dict[object, asyncio.Task[None]] = {}
        self.amount = 100
        self.wrong: list[str] = []

    def _reader(self, process: int) -> SheetReader:
        near = NearCache(0 if process == WITHOUT_NEAR_CACHE else 10, 10**9, lambda: 0)
        near.heard(0)
        feed = self.redis.pubsub(ignore_subscribe_messages=True)
        feed.subscribe(INVALIDATIONS)
        feed.get_message(timeout=5)  # the confirmation: from here on nothing is missed
        self.feeds.append(feed)
        breaker: Callable[[str], Breaker] = lambda what: Breaker(what, 5, 1000, lambda: 0)  # noqa: E731

        async def load(names: Sequence[Name]) -> dict[Name, Slot]:
            await self.gates.step()
            slots = load_slots(self.store, names, self.clock, LIFETIMES.slot)
            await self.gates.step()
            return slots

        cache = GatedCache(AsyncPriceCache(self.clients[process], LIFETIMES), self.gates)
        return SheetReader(Loads(near, cache, load, breaker("PostgreSQL"), breaker("Redis"), self.clock, PATIENT))

    def clock(self) -> int:
        return self.now

    def _current_versions(self, keys: Table) -> Column:
        self.gates.stop(self.loop)
        versions = current_versions(self.store, keys)
        self.gates.stop(self.loop)
        return versions

    @rule(name=st.sampled_from(NAMES), writer=st.integers(0, WRITERS - 1))
    def write(self, name: Name, writer: int) -> None:
        """Writers of one row commit in turns, as the row lock makes them do; what follows may change places."""
        self._spawn(("write", name, writer), lambda: self._write(name))

    @rule(
        name=st.sampled_from(NAMES),
        evicted=st.booleans(),
        told=st.sets(st.integers(0, PROCESSES - 1), min_size=1),
        client=st.integers(0, CLIENTS - 1),
        quiet=st.booleans(),
    )
    def overtake(self, name: Name, evicted: bool, told: set[int], client: int, quiet: bool) -> None:
        """A whole update, while everybody else stands still; then whoever was told of it is asked, at once or when
        all that had begun before has ended."""
        self._spawn(("write", name, WRITERS), lambda: self._write(name))
        self._hurry(("write", name, WRITERS), 20)
        for process in told:
            self.deliver(process)
        if evicted:
            self.evict(name)
        while quiet and any(not task.done() for task in self.tasks.values()):
            self.gates.open_one(0)
            self._run()
        for process in told:
            self.read(process, client, name)
            self._hurry(("read", process, 0 if process == WITHOUT_NEAR_CACHE else client), 3)

    def _hurry(self, who: object, steps: int) -> None:
        for _ in range(steps):
            if self.tasks[who].done():
                break
            self.gates.open_for(who)
            self._run()

    @rule(process=st.integers(0, PROCESSES - 1), client=st.integers(0, CLIENTS - 1), name=st.sampled_from(NAMES))
    def read(self, process: int, client: int, name: Name) -> None:
        if process == WITHOUT_NEAR_CACHE:
            client = 0  # alone, so that it never joins a load that began before its read
        self._spawn(("read", process, client), lambda: self._read(process, client, name))

    @rule(which=st.lists(st.integers(0, 7), min_size=1, max_size=6))
    def go_on(self, which: list[int]) -> None:
        for gate in which:
            self.gates.open_one(gate)
            self._run()

    @rule(process=st.integers(0, PROCESSES - 1))
    def deliver(self, process: int) -> None:
        while (message := self.feeds[process].get_message(timeout=0.001)) is not None:
            tell(self.readers[process], message["data"])
            for line in message["data"].decode().splitlines():
                version, _, key = line.partition(" ")
                name = next(name for name in NAMES if slot_key(name) == key)
                self.delivered[process][name] = max(self.delivered[process][name], int(version))

    @rule(name=st.sampled_from(NAMES))
    def evict(self, name: Name) -> None:
        """Also while committed sheets are on their way: a newer one may be evicted before an older one comes."""
        self.redis.delete(slot_key(name))

    @rule()
    def expire(self) -> None:
        """Every slot that is there stops being fresh."""
        self.now += 10**9

    @invariant()
    def nobody_read_what_was_over(self) -> None:
        type(self).steps += 1
        assert self.wrong == []

    async def _write(self, name: Name) -> None:
        await self.gates.step()
        self.amount += 1
        keys = np.array([(NAMES.index(name) + 1, 1)], ROW_KEYS)
        with self.store.transaction() as tx:
            tx.catalog.set_signals(LIST_PRICE, [(*keys[0].item(), self.amount, self.amount)])
            sheets: list[EncodedSheet] = reprice(tx, keys, "test")
        await self.gates.step()
        await self.gates.in_a_thread(lambda: self.writer_cache.put(sheets))
        await self.gates.step()
        self.acknowledged[name] = max(self.acknowledged[name], sheets[0].version)

    async def _read(self, process: int, client: int, name: Name) -> None:
        due = self.acknowledged if process == WITHOUT_NEAR_CACHE else self.delivered[process]
        at_least = due[name]
        found = (await self.readers[process].find([name]))[name]
        version = decode_sheet(found.slot.payload).version
        if version < at_least:
            self.wrong.append(f"process {process} read {name} at {version} ({found.source}), {at_least} was due")
        before = self.seen.get((process, client, name), 0)
        if version < before:
            self.wrong.append(f"client {client} of process {process} read {name} at {version} after {before}")
        self.seen[process, client, name] = version

    def _spawn(self, who: object, work: Callable[[], Awaitable[None]]) -> None:
        """Start it, unless the same one is still at its last."""
        task = self.tasks.get(who)
        if task is None or task.done():

            async def run() -> None:
                _who.set(who)
                await work()

            self.tasks[who] = self.loop.create_task(run())
            self._run()

    def _run(self) -> None:
        """Until everybody waits at a gate or for somebody else."""

        async def turns() -> None:
            for _ in range(3):
                while self.gates.asking:  # noqa: ASYNC110 - an event per answer would say no more
                    await asyncio.sleep(0.0001)
                for _ in range(4):
                    await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def teardown(self) -> None:
        async def finish() -> None:
            myself = {asyncio.current_task()}
            async with asyncio.timeout(60):
                while asyncio.all_tasks() - myself:  # also loads that nobody waits for any more
                    self.gates.open_one(0)
                    await asyncio.sleep(0.0005)
            for task in self.tasks.values():
                task.result()

        async def close() -> None:
            for client in self.clients:
                await client.aclose()

        try:
            self.loop.run_until_complete(finish())
            assert self.wrong == []
        finally:
            self.loop.run_until_complete(close())
            self.loop.close()
            for feed in self.feeds:
                with contextlib.suppress(redis.RedisError):
                    feed.close()
            self.redis.close()
            self.engine.dispose()


@pytest.fixture(scope="module")
def seeded_url(stores: Stores) -> Iterator[str]:
    with stores.database() as url:
        engine = make_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text(SEED))
        engine.dispose()
        yield url


def test_no_reader_sees_what_an_acknowledged_update_has_replaced(seeded_url: str, stores: Stores) -> None:
    Races.database_url, Races.valkey_url, Races.steps = seeded_url, stores.flushed_valkey(), 0
    run: Any = run_state_machine_as_test
    batch = settings(max_examples=30, stateful_step_count=100, deadline=None, print_blob=True, phases=[Phase.generate])
    while Races.steps < 10_000:
        run(Races, settings=batch)
