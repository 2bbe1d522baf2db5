"""The one place where real clients are built."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from app.adapters.key_feed import KeyFeed
from app.adapters.price_cache import AsyncPriceCache, Lifetimes, PriceCache
from app.adapters.process_gauges import ProcessGauges
from app.adapters.rate_limits import RateLimits
from app.adapters.record_store import RecordStore
from app.adapters.record_stream import POSTGRESQL, VICTORIAMETRICS, RecordStream
from app.adapters.redis_clients import count_connections, make_async_redis, make_connection, make_redis
from app.adapters.spill import Spill
from app.adapters.store import Store
from app.adapters.telemetry_stream import TelemetryStream
from app.adapters.token_buckets import Buckets
from app.domain.api_key import KeyHash
from app.domain.client_address import parse_networks
from app.errors import InvalidInput, Unavailable
from app.observability import metrics
from app.observability.capture import Capture, end_of
from app.observability.receipts import Receipts
from app.observability.sources import End, Source
from app.observability.tracing import current_traceparent
from app.services.breaker import Breaker
from app.services.callers import Callers, KeyRing
from app.services.keys import first_key
from app.services.loading import PATIENCE, Loads
from app.services.near_cache import NearCache
from app.services.quoting import load_slots
from app.services.reading import SheetReader
from app.services.repricing import current_versions
from app.services.rule_changes import RuleChanges
from app.services.slots import Name, Slot
from app.settings import KEY_SECRET_LENGTH, Settings

if TYPE_CHECKING:
    from app.adapters.locks import Locks
    from app.adapters.task_queue import TaskQueue
    from app.record_sinks import RecordSinks

WORKER_ANSWER_S, WORKER_IDLE_S = 60.0, 10.0
"""How long a worker waits for PostgreSQL's next word, and PostgreSQL for a worker's within a transaction. The longest
statement, the division of a recalculation, takes seconds. A connection that is half-open is given up sooner."""

BREAKER_FAILURES = 5
BREAKER_OPEN_MS = 1_000
FEED_TIMEOUT_S = 1.0
TELEMETRY_TIMEOUT_S, TELEMETRY_OPEN_MS = 1.0, 1_000
LIMITS_TIMEOUT_S = 0.25
"""A request waits for its token: each process has a bucket of its own for when Redis takes longer."""

USAGE_POOL_SIZE, USAGE_ANSWER_S = 2, 60.0
"""Bills are counted by so many requests of an API process at once, and may take so long."""


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
    records: RecordStream
    record_store: RecordStore
    record_sinks: "RecordSinks"
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
    usage_store: Store
    record_backlog: RecordStream
    key_hash: KeyHash
    callers: Callers
    key_feed: KeyFeed
    buckets: Buckets
    rate_limits: RateLimits
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
        self.key_feed.start()
        self.feed.start()
        self.hot_names.start()
        self.gauges.start()
        return away

    async def close(self) -> None:
        """Let every connection go."""
        await self.gauges.stop()
        await self.hot_names.stop()
        await self.feed.stop()
        await self.key_feed.stop()
        await self.rate_limits.close()
        await self.buckets.close()
        await self.cache.close()
        await self.publisher.close()
        self.dead_letters.close()
        self.record_backlog.close()
        self.usage_store.close()
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
    from app.record_sinks import RecordSinks

    where = _addresses(settings)
    events = make_redis(where.events, settings.store_timeout_s)
    stream = make_redis(where.events, settings.store_timeout_s, repeats=False)
    locks = Locks(events, settings.lock_ttl_s)
    store = Store(make_engine(where.database, settings.database_pool_size, WORKER_ANSWER_S, WORKER_IDLE_S))
    cache = make_redis(where.cache, settings.store_timeout_s)
    breakers = Breakers(events)
    records = open_record_stream(settings, stream)
    record_store = RecordStore(store, settings.telemetry_retention_days)
    return Resources(
        settings=settings,
        store=store,
        cache=PriceCache(cache, where.lifetimes, partial(current_versions, store)),
        publisher=Publisher(events, where.names, settings.idempotency_ttl_s),
        log=EventLog(stream, where.names),
        channel=EventChannel(events, where.names),
        inboxes=Inboxes(events, where.names),
        breakers=breakers,
        locks=locks,
        queue=TaskQueue(make_celery(where.events), events, locks),
        accounts=EventAccounts(events, where.names),
        records=records,
        record_store=record_store,
        record_sinks=RecordSinks(settings, record_store, records, breakers, now_ms),
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
    breakers = {"postgresql": breaker("PostgreSQL", try_ms=PATIENCE.hard), "cache": breaker("Redis")}
    reader = SheetReader(Loads(near, cache, load, breakers["postgresql"], breakers["cache"], now_ms))
    # A short wait: the feed's own loop tries again, and must be back soon after an outage.
    feed_client = make_async_redis(where.cache, FEED_TIMEOUT_S, reconnects=False)
    feed = InvalidationFeed(feed_client, reader, monotonic_ms)
    key_hash = open_key_hash(settings)
    ring = KeyRing(key_hash)
    key_feed = KeyFeed(where.database, key_hash.mark, ring)
    limits_client = make_async_redis(where.events, LIMITS_TIMEOUT_S)
    buckets = Buckets(limits_client)
    return ApiResources(
        settings=settings,
        store=store,
        cache=cache,
        publisher=publisher,
        near=near,
        reader=reader,
        rule_changes=RuleChanges(store, publisher, current_traceparent),
        dead_letters=open_dead_letters(settings),
        usage_store=Store(make_engine(where.database, USAGE_POOL_SIZE, USAGE_ANSWER_S)),
        record_backlog=open_record_stream(settings, make_redis(where.events, settings.store_timeout_s)),
        key_hash=key_hash,
        callers=Callers(ring, key_feed.catch_up, open_reading=settings.open_reading),
        key_feed=key_feed,
        buckets=buckets,
        rate_limits=RateLimits(buckets.draw, settings.workers, monotonic_ms),
        feed=feed,
        hot_names=HotNames(events_client, reader, feed.heard),
        gauges=ProcessGauges(
            {"cache": cache_client, "broker": events_client, "feed": feed_client, "limits": limits_client}, breakers
        ),
    )


def open_dead_letters(settings: Settings) -> DeadLetters:
    """The dead letters alone, for who has nothing else to do. Raises `InvalidInput` where the address is missing."""
    if settings.events_url is None:
        raise InvalidInput("set PRICING_BROKER_URL or PRICING_CACHE_URL, or start everything with `pricing up`")
    client = make_redis(settings.events_url.get_secret_value(), settings.store_timeout_s)
    return DeadLetters(client, _names(settings), settings.idempotency_ttl_s, settings.replays_per_s)


def open_key_hash(settings: Settings) -> KeyHash:
    """What API keys are hashed with. Raises `InvalidInput` where the secret is missing or its file cannot be read."""
    secret, file = settings.key_secret, settings.key_secret_file
    if secret is not None:
        return KeyHash(secret.get_secret_value())
    if file is None:
        raise InvalidInput("set PRICING_KEY_SECRET or PRICING_KEY_SECRET_FILE, or start everything with `pricing up`")
    try:
        read = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"PRICING_KEY_SECRET_FILE cannot be read: {error}") from None
    if len(read) < KEY_SECRET_LENGTH:
        raise InvalidInput(f"the secret in PRICING_KEY_SECRET_FILE has less than {KEY_SECRET_LENGTH} characters")
    return KeyHash(read)


@contextmanager
def open_key_store(settings: Settings) -> Iterator[tuple[Store, KeyHash]]:
    """What keys are kept in and hashed with, for commands. Raises `InvalidInput` where the settings lack something."""
    if settings.database_url is None:
        raise InvalidInput("set PRICING_DATABASE_URL, or start everything with `pricing up`")
    key_hash = open_key_hash(settings)
    store = Store(make_engine(settings.database_url.get_secret_value(), pool_size=1))
    try:
        yield store, key_hash
    finally:
        store.close()


def make_first_key(settings: Settings) -> str | None:
    """An admin key where the database has none that works."""
    with open_key_store(settings) as (store, key_hash):
        return first_key(store, key_hash)


def open_capture(settings: Settings, receipts: Receipts | None = None) -> Capture | None:
    """What keeps a record of each request of an API process, unless that is off. With `receipts`, whoever waits there
    is told when. Raises `InvalidInput` where the address is missing."""
    if settings.telemetry == "off":
        return None
    metrics.telemetry_spill_limit.set(settings.telemetry_spill_mb << 20)
    source = Source()
    return Capture(
        source,
        open_telemetry_stream(settings),
        open_spill(settings, source.name),
        Breaker("the telemetry stream", 1, TELEMETRY_OPEN_MS, monotonic_ms),
        settings.telemetry_stream,
        parse_networks(settings.trusted_proxies),
        receipts.give if receipts is not None else None,
    )


def tell_end(settings: Settings, end: End) -> None:
    """That a source of records ended without saying so itself, and how far it had come: into the stream or, while that
    is away, onto the disk."""
    stream, spill = open_telemetry_stream(settings), open_spill(settings, end.source)
    try:
        stream.add([end_of(end)])
    except Exception:  # whatever it is: who says this is the master, which shall go on
        spill.append([end_of(end)])
    finally:
        stream.close()  # what is forked from here on shall not have the connection
        spill.close()


def open_telemetry_stream(settings: Settings) -> TelemetryStream:
    """Where records of requests go. Raises `InvalidInput` where the address is missing."""
    if settings.events_url is None:
        raise InvalidInput("set PRICING_BROKER_URL or PRICING_CACHE_URL, or start everything with `pricing up`")
    connection = make_connection(settings.events_url.get_secret_value(), TELEMETRY_TIMEOUT_S)
    return TelemetryStream(connection, settings.telemetry_stream, settings.telemetry_backlog_mb << 20)


def open_spill(settings: Settings, name: str) -> Spill:
    """Where they go instead; `name` is whose."""
    return Spill(settings.telemetry_folder, name, settings.telemetry_spill_mb << 20)


def open_record_stream(settings: Settings, client: redis.Redis) -> RecordStream:
    """The stream of request records with the groups of the sinks that the settings have."""
    sinks = [POSTGRESQL] if settings.victoriametrics_url is None else [POSTGRESQL, VICTORIAMETRICS]
    return RecordStream(client, settings.telemetry_stream, sinks)


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
