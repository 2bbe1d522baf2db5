"""The feed that keeps near caches honest: invalidations, and heartbeats that show how far they have come."""

import asyncio
from contextlib import suppress
from uuid import uuid4

import redis
import redis.asyncio
import structlog

from app.adapters.price_cache import CLEARED_AT, EVERYTHING, INVALIDATIONS, PREFIX
from app.observability import metrics
from app.services.ports import Clock
from app.services.reading import SheetReader

HEARTBEAT_S = 0.5
_HEARTBEAT = b"."
_SILENT_MS = 2_000
"""Silence after which a new connection is the better bet."""

_BEFORE_PLACE = f" {PREFIX}"

_logger = structlog.get_logger(__name__)


class InvalidationFeed:
    """Listens as a task of the event loop, and sends heartbeats over another connection.

    A heartbeat says when it was sent, and messages arrive in order: so one of our own that has come through proves
    that every invalidation up to then has, too. The near cache judges how old that proof may be. `client` must
    not connect anew by itself, for then a message could be missed unnoticed; `clock` is the near cache's.
    """

    def __init__(self, client: redis.asyncio.Redis, reader: SheetReader, clock: Clock) -> None:
        self._client, self._reader, self._clock = client, reader, clock
        self._mine = _HEARTBEAT + uuid4().hex.encode() + b" "
        self._epoch = reader.near.epoch
        self._cleared_at = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.heard = asyncio.Event()
        """Set once the near cache may keep what it reads."""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self._client.aclose()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(INVALIDATIONS)
                    await self._catch_up()
                    await self._hear(subscription)
            except (redis.RedisError, OSError) as error:
                _logger.warning("the invalidation feed is out of reach", error=str(error))
            self._reader.lost()
            await asyncio.sleep(HEARTBEAT_S)

    async def _catch_up(self) -> None:
        """What was to be forgotten while nobody listened here is forgotten now: an outage shall not be answered with
        it. Whatever else was missed is no matter, for all is read anew after a lost connection."""
        self._forget_all(int(await self._client.get(CLEARED_AT) or 0))

    def _forget_all(self, said_at: int) -> None:
        if said_at > self._cleared_at:
            self._cleared_at = said_at
            self._reader.clear()

    async def _hear(self, subscription: redis.asyncio.client.PubSub) -> None:
        """Until the connection fails or is silent."""
        heard_at = self._clock()
        while self._clock() - heard_at < _SILENT_MS:
            message = await subscription.get_message(timeout=HEARTBEAT_S)
            if message is None:
                continue
            content: bytes = message["data"]
            if content.startswith(self._mine):
                self._reader.heard(int(content.removeprefix(self._mine)))
                self.heard.set()
                heard_at = self._clock()
            elif content.endswith(EVERYTHING) and (said_at := content.removesuffix(EVERYTHING)).isdigit():
                self._forget_all(int(said_at))
            elif not content.startswith(_HEARTBEAT):
                tell(self._reader, content)
                # A writer of very many rows sends one message after the other: requests come in between.
                await asyncio.sleep(0)

    async def _beat(self) -> None:
        while True:
            with suppress(redis.RedisError, OSError):
                await self._client.publish(INVALIDATIONS, self._mine + str(self._clock()).encode())
            self._measure()
            await asyncio.sleep(HEARTBEAT_S)

    def _measure(self) -> None:
        near = self._reader.near
        metrics.near_cache_entries.set(len(near))
        metrics.near_cache_bypassed.set(not near.trusted)
        metrics.near_cache_resets.inc(near.epoch - self._epoch)
        self._epoch = near.epoch


def tell(reader: SheetReader, message: bytes) -> None:
    """Hand an invalidation message on. One that cannot be read says that anything may have changed."""
    try:
        for line in message.decode().splitlines():
            version, _, where = line.partition(_BEFORE_PLACE)
            if not where:
                raise ValueError
            if reader.concerned(where):
                location, _, product_id = where.partition("/")
                reader.told((product_id, location), int(version))
    except ValueError:
        _logger.warning("an invalidation that cannot be read empties the near cache")
        reader.clear()
