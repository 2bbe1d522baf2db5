"""The feed that keeps near caches honest: invalidations, and a heartbeat that shows that they would arrive."""

import asyncio
import time
from contextlib import suppress

import redis
import redis.asyncio
import structlog

from app.adapters.price_cache import INVALIDATIONS
from app.services.reading import SheetReader

HEARTBEAT_S = 0.5
_HEARTBEAT = b"."

_logger = structlog.get_logger(__name__)


class InvalidationFeed:
    """Listens as a task of the event loop, and sends heartbeats over another connection.

    A connection that is half-open shows as silence; the near cache itself judges how much silence is too much.
    """

    def __init__(self, client: redis.asyncio.Redis, reader: SheetReader) -> None:
        self._client, self._reader = client, reader
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(INVALIDATIONS)
                    await self._hear(subscription)
            except (redis.RedisError, OSError) as error:
                _logger.warning("the invalidation feed is out of reach", error=str(error))
            await asyncio.sleep(HEARTBEAT_S)

    async def _hear(self, subscription: redis.asyncio.client.PubSub) -> None:
        """Until the connection fails, or has been silent for so long that a new one is the better bet."""
        first = True
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < 4 * HEARTBEAT_S:
            message = await subscription.get_message(timeout=HEARTBEAT_S)
            if message is None:
                continue
            silent_since = time.monotonic()
            if first:
                self._reader.reconnected()
                first = False
            self._reader.near.heard()
            if message["data"] != _HEARTBEAT:
                tell(self._reader, message["data"])

    async def _beat(self) -> None:
        while True:
            with suppress(redis.RedisError, OSError):
                await self._client.publish(INVALIDATIONS, _HEARTBEAT)
            await asyncio.sleep(HEARTBEAT_S)


def tell(reader: SheetReader, message: bytes) -> None:
    """Hand an invalidation message on."""
    for line in message.decode().splitlines():
        version, _, key = line.partition(" ")
        if key == "*":
            reader.clear()
        else:
            location, _, product_id = key.removeprefix("price:").partition("/")
            reader.told((product_id, location), int(version))
