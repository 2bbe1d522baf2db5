"""The read path of one API process, on an event loop of its own: near cache, reader, feed and hot names."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from app.adapters.hot_names import HotNames
from app.adapters.invalidation_feed import InvalidationFeed
from app.adapters.price_cache import AsyncPriceCache, Lifetimes
from app.adapters.redis_clients import make_async_redis
from app.adapters.store import Store
from app.bootstrap import BREAKER_FAILURES, BREAKER_OPEN_MS, FEED_TIMEOUT_S, monotonic_ms, now_ms
from app.errors import Unavailable
from app.services.breaker import Breaker
from app.services.loading import Found, Loads, Patience
from app.services.near_cache import NearCache
from app.services.ports import Clock
from app.services.quoting import load_slots
from app.services.reading import SheetReader
from app.services.slots import Name, Slot
from app.settings import Settings

T = TypeVar("T")

LIFETIMES = Lifetimes(sheet_s=100, unknown_s=30, stale_s=100)
PATIENCE = Patience()
SILENCE_S = Settings(_env_file=None).near_cache_silence_s  # type: ignore[call-arg]


class Database:
    """Loads from a store, counts the loads, and can be told to fail or to hang."""

    def __init__(self, store: Store | None, clock: Clock = now_ms) -> None:
        self._store, self._clock = store, clock
        self.loads: list[list[Name]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.fails = store is None

    async def load(self, names: Sequence[Name]) -> dict[Name, Slot]:
        self.loads.append(list(names))
        await self.answers.wait()
        if self._store is None or self.fails:
            raise Unavailable("there is no database here")
        return await asyncio.to_thread(load_slots, self._store, names, self._clock, LIFETIMES.slot)


def make_loads(
    cache: AsyncPriceCache,
    database: Database,
    *,
    entries: int = 1000,
    clock: Clock = now_ms,
    patience: Patience = PATIENCE,
) -> Loads:
    """As the API makes them."""
    near = NearCache(entries, int(SILENCE_S * 1000), monotonic_ms)

    def breaker(what: str) -> Breaker:
        return Breaker(what, BREAKER_FAILURES, BREAKER_OPEN_MS, monotonic_ms)

    return Loads(near, cache, database.load, breaker("PostgreSQL"), breaker("Redis"), clock, patience)


class Process:
    """Its feed may go another way (`feed_url`) than its reads. The near cache is looked at from the test's thread."""

    def __init__(self, url: str, store: Store | None = None, feed_url: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.do(self._open(url, store, feed_url or url))

    async def _open(self, url: str, store: Store | None, feed_url: str) -> None:
        client = make_async_redis(url, 2)
        self._cache = AsyncPriceCache(client, LIFETIMES)
        self.database = Database(store)
        self.reader = SheetReader(make_loads(self._cache, self.database))
        self.near = self.reader.near
        self._feed = InvalidationFeed(
            make_async_redis(feed_url, FEED_TIMEOUT_S, reconnects=False), self.reader, monotonic_ms
        )
        self._hot_names = HotNames(client, self.reader, self._feed.heard, report_interval_s=0.1)
        self._feed.start()
        self._hot_names.start()

    def do(self, work: Awaitable[T]) -> T:
        async def done() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    def call(self, act: Callable[[], T]) -> T:
        async def done() -> T:
            return act()

        return self.do(done())

    def find(self, name: Name) -> Found:
        return self.do(self.reader.find([name]))[name]

    def has_at_hand(self, name: Name) -> bool:
        return self.call(lambda: self.near.fresh(name, now_ms()) is not None)

    def close(self) -> None:
        async def end() -> None:
            await self._hot_names.stop()
            await self._feed.stop()
            await self._cache.close()

        self.do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def process(url: str, store: Store | None = None, feed_url: str | None = None) -> Iterator[Process]:
    made = Process(url, store, feed_url)
    try:
        yield made
    finally:
        made.close()
