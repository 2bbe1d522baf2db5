"""Which prices are asked for most: kept by all API processes where a restart does not lose it, to warm up one that
starts."""

import asyncio
from contextlib import suppress
from heapq import nlargest
from typing import Any

import redis
import redis.asyncio

from app.errors import Unavailable
from app.services.near_cache import Entry
from app.services.reading import SheetReader
from app.services.slots import Name

_KEY = "hot_prices"
_KEEP = 10_000
_WARM_UP = 5_000
_REPORTED = 500
_FORGET_S = 86_400
_CHUNK = 500
_LOOKED_AT = 500
_BREATH_S = 0.01
"""Looking through a hundred thousand entries at once would hold up the requests."""


class HotNames:
    """Reports the hottest rows of this process now and then; at the start reads those of all."""

    def __init__(
        self, client: redis.asyncio.Redis, reader: SheetReader, begin: asyncio.Event, report_interval_s: float = 10.0
    ) -> None:
        """`begin` is set once the near cache may keep what it reads."""
        self._client, self._reader, self._begin = client, reader, begin
        self._report_interval_s = report_interval_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._warm_up()), asyncio.create_task(self._report())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _warm_up(self) -> None:
        """Read the rows that were asked for most; the process serves meanwhile."""
        await self._begin.wait()
        with suppress(Unavailable, redis.RedisError):
            names = [_name(member) for member in await self._client.zrevrange(_KEY, 0, _WARM_UP - 1)]
            for start in range(0, len(names), _CHUNK):
                await self._reader.find(names[start : start + _CHUNK])

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._report_interval_s)
            hottest: list[tuple[str, Entry]] = []
            least = 0  # that it takes to be one of them; few entries of many are compared
            for part in self._reader.near.hits(_LOOKED_AT):
                if asked := [(where, entry) for where, entry in part if entry.hits > least]:
                    hottest = nlargest(_REPORTED, hottest + asked, key=lambda item: item[1].hits)
                    least = hottest[-1][1].hits if len(hottest) == _REPORTED else 0
                await asyncio.sleep(_BREATH_S)
            if not hottest:
                continue
            with suppress(redis.RedisError):
                async with self._client.pipeline(transaction=False) as pipeline:
                    for where, entry in hottest:
                        pipeline.zincrby(_KEY, entry.hits, where)
                        entry.hits = 0  # told once
                    pipeline.zremrangebyrank(_KEY, 0, -_KEEP - 1)
                    pipeline.expire(_KEY, _FORGET_S)
                    await pipeline.execute()


def _name(member: Any) -> Name:
    location, _, product_id = member.decode().partition("/")
    return product_id, location
