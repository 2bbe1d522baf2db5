"""The one place where real clients are built."""

import time
from dataclasses import dataclass

from app.adapters.database import make_engine
from app.adapters.event_log import AsyncEventLog, EventLog, Names, position_at
from app.adapters.locks import Locks
from app.adapters.price_cache import AsyncPriceCache, Lifetimes, PriceCache
from app.adapters.redis_clients import make_async_redis, make_redis
from app.adapters.store import Store
from app.adapters.task_queue import TaskQueue, make_celery
from app.errors import InvalidInput
from app.observability.tracing import current_traceparent
from app.services.rule_changes import RuleChanges
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process works with. Nothing connects before it is used."""

    settings: Settings
    store: Store
    cache: PriceCache
    log: EventLog
    locks: Locks
    queue: TaskQueue
    async_cache: AsyncPriceCache
    async_log: AsyncEventLog
    rule_changes: RuleChanges

    def verify(self) -> None:
        """Every store answers, or `Unavailable` says which does not."""
        self.store.ping()
        self.cache.ping()
        self.log.ping()

    async def close(self) -> None:
        """Let every connection go."""
        await self.async_cache.close()
        await self.async_log.close()
        self.store.close()


def open_resources(settings: Settings) -> Resources:
    """Build every client from the settings. Raises `InvalidInput` where an address is missing."""
    missing = [name for name in ("database_url", "cache_url") if getattr(settings, name) is None]
    if missing or settings.database_url is None or settings.cache_url is None or settings.events_url is None:
        names = " and ".join(f"PRICING_{name.upper()}" for name in missing)
        raise InvalidInput(f"set {names}, or start everything with `pricing up`")
    cache_url = settings.cache_url.get_secret_value()
    events_url = settings.events_url.get_secret_value()
    names_in_redis = Names(
        settings.event_stream, settings.event_channel, settings.event_group, settings.dead_letter_stream
    )
    lifetimes = Lifetimes(settings.cache_ttl_s, settings.unknown_ttl_s)
    events = make_redis(events_url, settings.store_timeout_s)
    store = Store(make_engine(settings.database_url.get_secret_value(), settings.database_pool_size))
    async_log = AsyncEventLog(
        make_async_redis(events_url, settings.store_timeout_s), names_in_redis, settings.idempotency_ttl_s
    )
    return Resources(
        settings=settings,
        store=store,
        cache=PriceCache(make_redis(cache_url, settings.store_timeout_s), lifetimes),
        log=EventLog(events, names_in_redis, settings.idempotency_ttl_s),
        locks=Locks(events, settings.lock_ttl_s),
        queue=TaskQueue(make_celery(events_url)),
        async_cache=AsyncPriceCache(make_async_redis(cache_url, settings.store_timeout_s), lifetimes),
        async_log=async_log,
        rule_changes=RuleChanges(store, async_log, now_ms, position_at, current_traceparent),
    )


def now_ms() -> int:
    """The clock of the service: ms since 1970, UTC."""
    return time.time_ns() // 1_000_000
