"""The one place where real clients are built."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import redis

from app.adapters.breakers import Breakers
from app.adapters.database import make_engine
from app.adapters.dead_letters import DeadLetters
from app.adapters.event_accounts import EventAccounts
from app.adapters.event_channel import EventChannel
from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.event_publishing import AsyncPublisher, Publisher
from app.adapters.hot_names import HotNames
from app.adapters.inbox import Inboxes
from app.adapters.invalidation_feed import InvalidationFeed
from app.adapters.price_cache import AsyncPriceCache, Lifetimes, PriceCache
from app.adapters.process_gauges import ProcessGauges
from app.adapters.redis_clients import count_connections, make_async_redis, make_redis
from app.adapters.store import Store
from app.errors import InvalidInput, Unavailable
from app.observability.tracing import current_traceparent
from app.services.breaker import Breaker
from app.services.loading import Loads
from app.services.near_cache import NearCache
from app.services.quoting import load_slots
from app.services.reading import SheetReader
from app.services.repricing import current_versions
from app.services.rule_changes import RuleChanges
from app.services.slots import Name, Slot
from app.settings import Settings

if TYPE_CHECKING:
    from app.adapters.locks import Locks
    from app.adapters.task_queue import TaskQueue

WORKER_ANSWER_S, WORKER_IDLE_S = 60.0, 10.0
"""How long a worker waits for PostgreSQL's next word, and PostgreSQL for a worker's within a transaction. The longest
statement, the division of a recalculation, takes seconds. A connection that is half-open is given up sooner."""

BREAKER_FAILURES = 5
BREAKER_OPEN_MS = 1_000
FEED_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Resources:
    """What workers, the listener and commands work with. Nothing connects before it is used."""

    settings: Settings
    store: Store
    cache: PriceCache
    publisher: Publisher
    log: EventLog
    channel: EventChannel
    inboxes: Inboxes
    breakers: Breakers
    locks: "Locks"
    queue: "TaskQueue"
    accounts: EventAccounts
    redis_clients: Mapping[str, redis.Redis]

    def count_connections(self) -> None:
        """Note how many connections to Redis this process has."""
        count_connections(self.redis_clients)

    def verify(self) -> None:
        """Every store answers, or `Unavailable` says which does not."""
        self.store.ping()
        self.cache.ping()
        self.log.ping()


@dataclass(frozen=True, slots=True)
class ApiResources:
    """What an API process works with, on its event loop."""

    settings: Settings
    store: Store
    cache: AsyncPriceCache
    publisher: AsyncPublisher
    near: NearCache
    reader: SheetReader
    rule_changes: RuleChanges
    dead_letters: DeadLetters
    feed: InvalidationFeed
    hot_names: HotNames
    gauges: ProcessGauges

    async def start(self) -> list[Unavailable]:
        """Keep the near cache from now on. Gives what does not answer: a process that begins in an outage serves what
        the other stores know, as those do that began before."""
        away: list[Unavailable] = []
        for ping in (asyncio.to_thread(self.store.ping), self.cache.ping(), self.publisher.ping()):
            try:
                await ping
            except Unavailable as error:
                away.append(error)
        self.feed.start()
        self.hot_names.start()
        self.gauges.start()
        return away

    async def close(self) -> None:
        """Let every connection go."""
        await self.gauges.stop()
        await self.hot_names.stop()
        await self.feed.stop()
        await self.cache.close()
        await self.publisher.close()
        self.dead_letters.close()
        self.store.close()


@dataclass(frozen=True, slots=True)
class _Addresses:
    database: str
    cache: str
    events: str
    names: Names
    lifetimes: Lifetimes


def open_resources(settings: Settings) -> Resources:
    """Build every client from the settings. Raises `InvalidInput` where an address is missing."""
    # Celery is large, and the API, which shares this module, never starts a task.
    from app.adapters.locks import Locks
    from app.adapters.task_queue import TaskQueue, make_celery

    where = _addresses(settings)
    events = make_redis(where.events, settings.store_timeout_s)
    stream = make_redis(where.events, settings.store_timeout_s, repeats=False)
    locks = Locks(events, settings.lock_ttl_s)
    store = Store(make_engine(where.database, settings.database_pool_size, WORKER_ANSWER_S, WORKER_IDLE_S))
    cache = make_redis(where.cache, settings.store_timeout_s)
    return Resources(
        settings=settings,
        store=store,
        cache=PriceCache(cache, where.lifetimes, partial(current_versions, store)),
        publisher=Publisher(events, where.names, settings.idempotency_ttl_s),
        log=EventLog(stream, where.names),
        channel=EventChannel(events, where.names),
        inboxes=Inboxes(events, where.names),
        breakers=Breakers(events),
        locks=locks,
        queue=TaskQueue(make_celery(where.events), events, locks),
        accounts=EventAccounts(events, where.names),
        redis_clients={"cache": cache, "broker": events, "stream": stream},
    )


def open_api_resources(settings: Settings) -> ApiResources:
    """Build every client of an API process. Raises `InvalidInput` where an address is missing."""
    where = _addresses(settings)
    store = Store(make_engine(where.database, settings.database_pool_size, settings.store_timeout_s))
    cache_client = make_async_redis(where.cache, settings.store_timeout_s)
    cache = AsyncPriceCache(cache_client, where.lifetimes)
    events_client = make_async_redis(where.events, settings.store_timeout_s)
    publisher = AsyncPublisher(
        events_client,
        where.names,
        settings.idempotency_ttl_s,
        settings.max_backlog_events,
    )
    near = NearCache(settings.near_cache_entries, int(settings.near_cache_silence_s * 1000), monotonic_ms)

    async def load(names: Sequence[Name]) -> dict[Name, Slot]:
        return await asyncio.to_thread(load_slots, store, names, now_ms, where.lifetimes.slot)

    breaker = partial(Breaker, failures=BREAKER_FAILURES, open_ms=BREAKER_OPEN_MS, clock=monotonic_ms)
    breakers = {"postgresql": breaker("PostgreSQL"), "cache": breaker("Redis")}
    reader = SheetReader(Loads(near, cache, load, breakers["postgresql"], breakers["cache"], now_ms))
    # A short wait: the feed's own loop tries again, and must be back soon after an outage.
    feed_client = make_async_redis(where.cache, FEED_TIMEOUT_S, reconnects=False)
    feed = InvalidationFeed(feed_client, reader, monotonic_ms)
    return ApiResources(
        settings=settings,
        store=store,
        cache=cache,
        publisher=publisher,
        near=near,
        reader=reader,
        rule_changes=RuleChanges(store, publisher, current_traceparent),
        dead_letters=open_dead_letters(settings),
        feed=feed,
        hot_names=HotNames(cache_client, reader, feed.heard),
        gauges=ProcessGauges({"cache": cache_client, "broker": events_client, "feed": feed_client}, breakers),
    )


def open_dead_letters(settings: Settings) -> DeadLetters:
    """The dead letters alone, for who has nothing else to do. Raises `InvalidInput` where the address is missing."""
    if settings.events_url is None:
        raise InvalidInput("set PRICING_BROKER_URL or PRICING_CACHE_URL, or start everything with `pricing up`")
    client = make_redis(settings.events_url.get_secret_value(), settings.store_timeout_s)
    return DeadLetters(client, _names(settings), settings.idempotency_ttl_s, settings.replays_per_s)


def _names(settings: Settings) -> Names:
    return Names(settings.event_stream, settings.event_channel, settings.event_group, settings.dead_letter_stream)


def _addresses(settings: Settings) -> _Addresses:
    database, cache, events = settings.database_url, settings.cache_url, settings.events_url
    if database is None or cache is None or events is None:
        missing = [name for name in ("database_url", "cache_url") if getattr(settings, name) is None]
        names = " and ".join(f"PRICING_{name.upper()}" for name in missing)
        raise InvalidInput(f"set {names}, or start everything with `pricing up`")
    return _Addresses(
        database.get_secret_value(),
        cache.get_secret_value(),
        events.get_secret_value(),
        _names(settings),
        lifetimes(settings),
    )


def lifetimes(settings: Settings) -> Lifetimes:
    """How long cached prices live."""
    return Lifetimes(settings.cache_ttl_s, settings.unknown_ttl_s, settings.stale_ttl_s)


def now_ms() -> int:
    """The clock of the service: ms since 1970, UTC."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """A clock for durations: ms that never run backwards."""
    return time.monotonic_ns() // 1_000_000
