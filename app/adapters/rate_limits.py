"""Rate limits of keys, at hand: a process draws tokens from the shared bucket in small lots, ahead of use.

A token that was drawn is used within `LOT_MS` or lost, so all processes together never pass on more than the bucket
gave. A lot grows while it is used up quickly, up to a part of the limit, and shrinks while it is not: a key that is
seldom shown draws single tokens. A bucket that is empty is not asked again before it has another token.

While Redis is away each process has a bucket of its own, with its part of the limit: `processes` share it on this
machine. Those buckets are full when an outage begins, and know nothing of other machines.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from app.domain.api_key import Caller, RateLimit
from app.domain.token_bucket import Draw, TokenBucket
from app.errors import RateLimited, Unavailable
from app.observability import metrics
from app.services.ports import Clock

LOT_MS = 1_000
AWAY_MS = 1_000
"""Redis, where it did not answer, is asked again after this."""

_QUICK_MS = LOT_MS // 4
_PARTS = 10
"""No process holds more than this part of its share of a limit."""


class Standing(NamedTuple):
    """How a key stands: requests that are left to it, and in how many seconds it has all of them again."""

    limit: RateLimit
    left: int
    full_s: int


class LimitReached(RateLimited):
    """A key was shown more often than its limit allows."""

    def __init__(self, standing: Standing, wait_s: int) -> None:
        limit = standing.limit
        super().__init__(f"This API key is good for {limit.requests:,} requests in {limit.window_s:,} s.", wait_s)
        self.standing = standing


class _Lot:
    """The tokens of one key that this process has at hand."""

    def __init__(self, limit: RateLimit, processes: int, now: int) -> None:
        self.limit = limit
        self.most = max(1, min(limit.requests // (_PARTS * processes), round(limit.per_ms * LOT_MS)))
        self.own = TokenBucket(limit, processes, now)
        self.size = 1
        self.tokens = self.shared = self.waiting = 0
        self.drawn_at = self.empty_until = now
        self.full_at = now
        self.drawing: asyncio.Task[None] | None = None

    def take(self, now: int) -> bool:
        if self.tokens < 1 or now - self.drawn_at >= LOT_MS:
            return False
        self.tokens -= 1
        return True

    def adapt(self, now: int) -> None:
        """Before another is drawn."""
        age = now - self.drawn_at
        if self.tokens * 2 <= self.size and age <= _QUICK_MS:
            self.size = min(self.size * 2, self.most)
        elif age >= LOT_MS:
            self.size = max(1, self.size // 2)

    def put(self, draw: Draw, now: int) -> None:
        kept = self.tokens if now - self.drawn_at < LOT_MS else 0
        self.tokens, self.shared = kept + draw.granted, draw.left
        self.drawn_at, self.full_at = now, now + draw.full_ms
        if draw.granted == 0:
            self.empty_until = now + max(1, draw.next_ms)

    def standing(self, now: int) -> Standing:
        return Standing(self.limit, self.shared + self.tokens, math.ceil(max(0, self.full_at - now) / 1000))


class RateLimits:
    """`draw` asks the shared bucket of a key, and raises `Unavailable`; `clock` never runs backwards."""

    def __init__(self, draw: Callable[[str, RateLimit, int], Awaitable[Draw]], processes: int, clock: Clock) -> None:
        self._draw, self._processes, self._clock = draw, processes, clock
        self._lots: dict[str, _Lot] = {}
        self._away_until = 0

    def at_once(self, caller: Caller) -> Standing | None:
        """Take a token that is at hand; None where there is none. On the event loop, and for keys with a limit."""
        lot = self._lots.get(caller.key_id)
        now = self._clock()
        if lot is None or not lot.take(now):
            return None
        if lot.size > 1 and lot.tokens * 2 <= lot.size and now >= lot.empty_until:
            self._begin_to_draw(caller.key_id, lot)
        return lot.standing(now)

    async def take(self, caller: Caller) -> Standing:
        """Take a token, drawn now where none is at hand. Raises `LimitReached`."""
        limit = caller.rate_limit
        assert limit is not None
        lot = self._lots.get(caller.key_id)
        if lot is None:
            lot = self._lots[caller.key_id] = _Lot(limit, self._processes, self._clock())
        while True:
            now = self._clock()
            if lot.take(now):
                return lot.standing(now)
            if now < lot.empty_until:
                raise LimitReached(lot.standing(now), math.ceil((lot.empty_until - now) / 1000))
            lot.waiting += 1
            try:
                await asyncio.shield(self._begin_to_draw(caller.key_id, lot))
            finally:
                lot.waiting -= 1

    async def close(self) -> None:
        drawing = [lot.drawing for lot in self._lots.values() if lot.drawing is not None]
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)

    def _begin_to_draw(self, key_id: str, lot: _Lot) -> asyncio.Task[None]:
        if lot.drawing is None:
            lot.drawing = asyncio.create_task(self._fill(key_id, lot))
        return lot.drawing

    async def _fill(self, key_id: str, lot: _Lot) -> None:
        try:
            lot.adapt(self._clock())
            draw = await self._drawn(key_id, lot, max(lot.size, lot.waiting))
            lot.put(draw, self._clock())
        finally:
            lot.drawing = None

    async def _drawn(self, key_id: str, lot: _Lot, wanted: int) -> Draw:
        if self._clock() >= self._away_until:
            try:
                return await self._draw(key_id, lot.limit, wanted)
            except Unavailable:
                self._away_until = self._clock() + AWAY_MS
        metrics.rate_limits_local.inc()
        return lot.own.draw(wanted, self._clock())
