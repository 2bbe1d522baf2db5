"""Price sheets in Redis, one string per product and location: "<version> <sheet as JSON>".

A version below zero says that there is no such price, and why. Writing compares versions inside Redis, so
an older sheet never replaces a newer one, whoever is late.
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import redis
import redis.asyncio
from opentelemetry.trace import SpanKind

from app.adapters.redis_clients import unavailable_if_down
from app.domain.sheet import PriceSheet, decode_sheet, encode_sheet
from app.observability.tracing import step
from app.services.quoting import Found, Name, Unknown

_STORE = """
for i, key in ipairs(KEYS) do
    local value = ARGV[2 * i - 1]
    local current = redis.call('GETRANGE', key, 0, 19)
    local stored = tonumber(string.match(current, '^%-?%d+'))
    if not stored or stored <= tonumber(string.match(value, '^%-?%d+')) then
        redis.call('SET', key, value, 'PX', ARGV[2 * i])
    end
end
"""

_UNKNOWN = b"-1 "
_CHUNK = 500


def _key(product_id: str, location: str) -> str:
    return f"price:{location}/{product_id}"  # no id has a slash, so no two names share a key


def _decode(value: bytes | None) -> Found | None:
    if value is None:
        return None
    if value.startswith(_UNKNOWN):
        return Unknown(value[len(_UNKNOWN) :].decode())
    return decode_sheet(value[value.index(b" ") + 1 :])


class Lifetimes(NamedTuple):
    """How long entries live, in seconds, before jitter."""

    sheet_s: float
    unknown_s: float


def _arguments(entries: Iterable[tuple[Name, Found]], lifetimes: Lifetimes) -> Iterator[tuple[str, bytes, int]]:
    """Key, value and time to live (ms) of each entry that is worth storing. Jitter keeps keys that were
    written together from expiring together; a sheet never outlives its `valid_until`."""
    now = time.time() * 1000
    for (product_id, location), entry in entries:
        jitter = random.uniform(0.9, 1.1)  # noqa: S311 - spreads load, guards nothing
        if isinstance(entry, Unknown):
            value, ttl = _UNKNOWN + entry.reason.encode(), lifetimes.unknown_s * 1000 * jitter
        else:
            value, ttl = b"%d %s" % (entry.version, encode_sheet(entry)), lifetimes.sheet_s * 1000 * jitter
            if entry.valid_until is not None:
                ttl = min(ttl, entry.valid_until - now)
        if ttl >= 1:
            yield _key(product_id, location), value, int(ttl)


def _put_step() -> AbstractContextManager[None]:
    return step("redis put prices", SpanKind.CLIENT, {"db.system.name": "redis"})


def _chunks(arguments: Iterator[tuple[str, bytes, int]]) -> Iterator[tuple[list[str], list[Any]]]:
    chunk = list(arguments)
    for start in range(0, len(chunk), _CHUNK):
        part = chunk[start : start + _CHUNK]
        yield [key for key, _, _ in part], [field for _, value, ttl in part for field in (value, ttl)]


class AsyncPriceCache:
    """The readers' side, on the event loop. Raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, lifetimes: Lifetimes) -> None:
        self._client = client
        self._lifetimes = lifetimes
        self._store = client.register_script(_STORE)

    async def get_many(self, names: Sequence[Name]) -> list[Found | None]:
        """One round trip; answers in the order of `names`, (product id, location) pairs."""
        if not names:
            return []
        with unavailable_if_down():
            values: list[Any] = await self._client.mget([_key(*name) for name in names])
        return [_decode(value) for value in values]

    async def put(self, entries: Iterable[tuple[Name, Found]]) -> None:
        """Store each entry under its name, unless something newer is there."""
        with _put_step(), unavailable_if_down():
            for keys, arguments in _chunks(_arguments(entries, self._lifetimes)):
                await self._store(keys=keys, args=arguments)

    async def ping(self) -> None:
        with unavailable_if_down():
            await self._client.ping()

    async def close(self) -> None:
        await self._client.aclose()


class PriceCache:
    """The writers' side. Raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, lifetimes: Lifetimes) -> None:
        self._client = client
        self._lifetimes = lifetimes
        self._store = client.register_script(_STORE)

    def put(self, sheets: Iterable[PriceSheet]) -> None:
        """Store each, unless something newer is there."""
        entries = (((sheet.product_id, sheet.location), sheet) for sheet in sheets)
        with _put_step(), unavailable_if_down():
            for keys, arguments in _chunks(_arguments(entries, self._lifetimes)):
                self._store(keys=keys, args=arguments)

    def ping(self) -> None:
        with unavailable_if_down():
            self._client.ping()
