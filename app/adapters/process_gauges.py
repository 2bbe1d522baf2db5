"""What an API process notes about itself twice a second: its connections to Redis, and what it does not ask."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import redis.asyncio

from app.adapters.redis_clients import count_connections
from app.observability import metrics
from app.services.breaker import Breaker

_INTERVAL_S = 0.5


class ProcessGauges:
    """`clients` by what they are for, `breakers` by the store that they keep readers from asking."""

    def __init__(self, clients: Mapping[str, redis.asyncio.Redis], breakers: Mapping[str, Breaker]) -> None:
        self._clients, self._breakers = clients, breakers
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            count_connections(self._clients)
            for store, breaker in self._breakers.items():
                metrics.reader_breaker_open.labels(store).set(not breaker.closed)
            await asyncio.sleep(_INTERVAL_S)
