"""Price sheets in Redis: one string per row, in its own words a *slot*.

    <version> <checked_at> <fresh_until> <lease> <lease_until> <payload>

Times are ms since 1970. A reader that misses takes a lease in the slot itself, and may fill it only while the
lease is still its own; a writer's update replaces the slot and with it the lease. All comparisons happen inside
Redis, so an older sheet never replaces a newer one, whoever is late. A writer that finds nothing to compare with does
as a reader does: lease, look into the database, fill. Writing also publishes the invalidation for the near caches, in
the same step.

A slot stays longer than it is fresh, to be served when nothing newer can be had.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import redis
import redis.asyncio
from opentelemetry.trace import SpanKind

from app.adapters.redis_clients import unavailable_if_down, unavailable_if_refused
from app.domain.columns import ROW_KEYS, Column, Table
from app.domain.sheet import EncodedSheet
from app.observability import metrics
from app.observability.tracing import step
from app.services.slots import UNKNOWN, Leased, Name, Slot, place

INVALIDATIONS = "price_invalidations"
"""Channel on which every write is told: lines of "<version> <key>"."""

EVERYTHING = b" *"
"""What ends the message that all prices are to be forgotten; before it is when that was said (ms)."""

CLEARED_AT = "prices_cleared_at"
"""Key of when that was said last, for feeds that did not hear it."""

PREFIX = "price:"

_EMPTY = -2
_NO_LEASE = "-"

_HEADER = """
local function header(key)
    local head = redis.call('GETRANGE', key, 0, 99)
    local version, lease, lease_until = string.match(head, '^(%-?%d+) %d+ %d+ (%S+) (%d+) ')
    return tonumber(version), lease, tonumber(lease_until)
end
"""

# ARGV: life of a slot, token, lease until, life of an empty slot (all ms but the token), then a value per key.
# What is not there might have been newer before it went: the writer asks for a lease, as a reader would.
_STORE = f"""
local call, match, told, absent = redis.call, string.match, {{}}, {{}}
local empty = '{_EMPTY} 0 0 ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' '
for i, key in ipairs(KEYS) do
    local value = ARGV[i + 4]
    local new = match(value, '^%-?%d+')
    local stored = tonumber(match(call('GETRANGE', key, 0, 20), '^%-?%d+'))
    if not stored or stored == {_EMPTY} then
        call('SET', key, empty, 'PX', ARGV[4])
        absent[#absent + 1] = i
        told[#told + 1] = new .. ' ' .. key
    elseif stored <= tonumber(new) then
        call('SET', key, value, 'PX', ARGV[1])
        told[#told + 1] = new .. ' ' .. key
    end
end
if #told > 0 then call('PUBLISH', '{INVALIDATIONS}', table.concat(told, '\\n')) end
return absent
"""

# ARGV: now, token, lease until, life of an empty slot (all ms but the token), early (1 or 0)
_LEASE = f"""{_HEADER}
local answers = {{}}
local now = tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
    local value = redis.call('GET', key)
    local _, lease, lease_until = header(key)
    local granted = 0
    if not value then
        redis.call('SET', key, '{_EMPTY} 0 0 ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ', 'PX', ARGV[4])
        granted = 1
    elseif lease == '{_NO_LEASE}' or lease_until <= now then
        local version, checked_at, fresh_until, rest = string.match(value, '^(%-?%d+) (%d+) (%d+) %S+ %d+ (.*)$')
        if ARGV[5] == '1' or tonumber(fresh_until) <= now then
            local head = table.concat({{version, checked_at, fresh_until, ARGV[2], ARGV[3]}}, ' ')
            redis.call('SET', key, head .. ' ' .. rest, 'KEEPTTL')
            granted = 1
        end
    end
    answers[#answers + 1] = value or ''
    answers[#answers + 1] = granted
end
return answers
"""

# The holder of the lease may replace a sheet by the knowledge that there is none any more: no writer came between.
# A newer sheet than the one that is there is right whoever brings it; the reader who was given it already shall not
# find the older one next.
_FILL = f"""{_HEADER}
local filled = 0
for i, key in ipairs(KEYS) do
    local value = ARGV[2 * i]
    local new = tonumber(string.match(value, '^%-?%d+'))
    local stored, lease = header(key)
    local mine = lease == ARGV[1] and (stored <= new or new == {UNKNOWN})
    if mine or (stored and stored >= 0 and stored < new) then
        redis.call('SET', key, value, 'PX', ARGV[2 * i + 1])
        filled = filled + 1
    end
end
return filled
"""

_CHUNK = 200
"""Slots that one script writes: Redis answers nobody else meanwhile, for about 1.5 ms."""

_LEASE_MS = 5_000
"""How long readers wait for a writer to fill a slot, at most."""


class Lifetimes(NamedTuple):
    """How long slots are fresh, and how long they stay to be served stale, in seconds, before jitter."""

    sheet_s: float
    unknown_s: float
    stale_s: float

    def slot(self, version: int, valid_until: int | None, payload: bytes, now: int) -> Slot:
        """A slot that was checked just now (ms). Jitter keeps slots that were written together from going
        stale together; a sheet is never fresh past its `valid_until` (ms)."""
        life = self.unknown_s if version == UNKNOWN else self.sheet_s
        fresh_until = now + int(life * 1000 * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load only
        if valid_until is not None:
            fresh_until = min(fresh_until, valid_until)
        return Slot(version, now, fresh_until, payload)

    @property
    def stay_ms(self) -> int:
        """How long a sheet's slot stays."""
        return int((self.sheet_s + self.stale_s) * 1000)

    def stay_ms_of(self, slot: Slot) -> int:
        """An unknown row is forgotten when it is not fresh any more: anybody can ask for any number of them."""
        return max(1, slot.fresh_until - slot.checked_at) if slot.unknown else self.stay_ms


def slot_key(name: Name) -> str:
    """Where a row's slot is."""
    return PREFIX + place(name)


def _encode(slot: Slot) -> bytes:
    head = f"{slot.version} {slot.checked_at} {slot.fresh_until} {_NO_LEASE} 0 "
    return head.encode() + slot.payload


def _decode(value: bytes | None) -> Slot | None:
    if not value:
        return None
    version, checked_at, fresh_until, _, _, payload = value.split(b" ", 5)
    return None if int(version) == _EMPTY else Slot(int(version), int(checked_at), int(fresh_until), payload)


class AsyncPriceCache:
    """The readers' side, on the event loop. Raises `Unavailable` where Redis is away or refuses: a reader can go on
    without it."""

    def __init__(self, client: redis.asyncio.Redis, lifetimes: Lifetimes) -> None:
        self._client = client
        self._lifetimes = lifetimes
        self._lease = client.register_script(_LEASE)
        self._fill = client.register_script(_FILL)

    async def get(self, names: list[Name]) -> list[Slot | None]:
        """One round trip; answers in the order of `names`."""
        if not names:
            return []
        with metrics.cache_call.labels("get").time(), unavailable_if_refused():
            values: list[Any] = await self._client.mget([slot_key(name) for name in names])
        return [_decode(value) for value in values]

    async def lease(self, names: list[Name], token: str, now: int, lease_ms: int, *, early: bool) -> list[Leased]:
        """Ask for the right to fill these slots, from `now` (ms) for `lease_ms`; `early` also where they are fresh."""
        with metrics.cache_call.labels("lease").time(), unavailable_if_refused():
            answers: list[Any] = await self._lease(
                keys=[slot_key(name) for name in names],
                args=[now, token, now + lease_ms, lease_ms * 2, int(early)],
            )
        return [
            Leased(_decode(value), bool(granted)) for value, granted in zip(answers[::2], answers[1::2], strict=True)
        ]

    async def fill(self, slots: Mapping[Name, Slot], token: str) -> None:
        """Fill slots whose lease is still `token`'s, or that have an older sheet."""
        with metrics.cache_call.labels("fill").time(), _put_step(), unavailable_if_refused():
            await self._fill(
                keys=[slot_key(name) for name in slots],
                args=[
                    token,
                    *(part for slot in slots.values() for part in (_encode(slot), self._lifetimes.stay_ms_of(slot))),
                ],
            )

    async def ping(self) -> None:
        with unavailable_if_refused():
            await self._client.ping()

    async def close(self) -> None:
        await self._client.aclose()


class PriceCache:
    """The writers' side. Raises `Unavailable` where Redis is away, or where `current` does: it gives the newest stored
    version of each of these rows (dtype `ROW_KEYS`)."""

    def __init__(self, client: redis.Redis, lifetimes: Lifetimes, current: Callable[[Table], Column]) -> None:
        self._client, self._lifetimes, self._current = client, lifetimes, current
        self._store = client.register_script(_STORE)
        self._fill = client.register_script(_FILL)

    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        """Store each, unless something newer is there, take away its lease, and tell the near caches.

        Where nothing is there, something newer may have been: a slot is filled then as a reader fills it, under a
        lease, and only if the sheet is still the current one in the database afterwards.
        """
        sheets, now, token = list(sheets), int(time.time() * 1000), uuid4().hex
        with _put_step(), unavailable_if_down("cache"):
            absent: list[EncodedSheet] = []
            for chunk in _chunks(sheets):
                args: list[str | bytes | int] = [
                    self._lifetimes.stay_ms, token, now + _LEASE_MS, 2 * _LEASE_MS,
                    *(_encode(self._slot(sheet, now)) for sheet in chunk),
                ]  # fmt: skip
                with metrics.cache_call.labels("put").time():
                    found = self._store(keys=list(map(_key, chunk)), args=args)
                absent += [chunk[nth - 1] for nth in found]
            self._fill_current(absent, now, token)

    def _fill_current(self, sheets: list[EncodedSheet], now: int, token: str) -> None:
        if not sheets:
            return
        keys = np.array([(sheet.product_key, sheet.location_key) for sheet in sheets], ROW_KEYS)
        newest = zip(sheets, self._current(keys).tolist(), strict=True)
        for chunk in _chunks([sheet for sheet, version in newest if sheet.version == version]):
            slots = (self._slot(sheet, now) for sheet in chunk)
            args = (part for slot in slots for part in (_encode(slot), self._lifetimes.stay_ms))
            self._fill(keys=list(map(_key, chunk)), args=[token, *args])

    def _slot(self, sheet: EncodedSheet, now: int) -> Slot:
        return self._lifetimes.slot(sheet.version, sheet.valid_until, sheet.payload, now)

    def ping(self) -> None:
        with unavailable_if_down():
            self._client.ping()


def clear(client: redis.Redis) -> int:
    """Forget every price, also what would be served stale, here and in the near caches; how many slots. Raises
    `Unavailable`."""
    cleared = 0
    with unavailable_if_down():
        keys: list[bytes] = []
        for key in client.scan_iter(match=f"{PREFIX}*", count=1000):
            keys.append(key)
            if len(keys) >= _CHUNK:
                cleared += int(client.unlink(*keys))
                keys.clear()
        if keys:
            cleared += int(client.unlink(*keys))
        now = b"%d" % (time.time() * 1000)
        client.set(CLEARED_AT, now)
        client.publish(INVALIDATIONS, now + EVERYTHING)
    return cleared


def _key(sheet: EncodedSheet) -> str:
    return slot_key((sheet.product_id, sheet.location))


def _chunks(sheets: Sequence[EncodedSheet]) -> Iterator[Sequence[EncodedSheet]]:
    for start in range(0, len(sheets), _CHUNK):
        yield sheets[start : start + _CHUNK]


def _put_step() -> Any:
    return step("redis put prices", SpanKind.CLIENT, {"db.system.name": "redis"})
