"""The buckets that all API processes draw tokens from: one script, by the clock of Redis."""

from typing import Any

import redis.asyncio

from app.adapters.redis_clients import unavailable_if_refused
from app.domain.api_key import RateLimit
from app.domain.token_bucket import Draw

# KEYS: bucket. ARGV: requests, the time in ms that fills it, tokens wanted. A bucket that is not there is full. As
# `TokenBucket` has it, in the same parts of a token, which a double holds exactly; a test compares the two. A clock
# that was set back brings no tokens and takes none.
_DRAW = """
local flow, token, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local capacity = flow * token
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'parts', 'at')
local parts, at = tonumber(bucket[1]) or capacity, tonumber(bucket[2]) or now
parts = math.min(capacity, parts + math.max(0, now - at) * flow)
local granted = math.min(wanted, math.floor(parts / token))
parts = parts - granted * token
redis.call('HSET', KEYS[1], 'parts', parts, 'at', now)
redis.call('PEXPIRE', KEYS[1], token)
local next_ms, full_ms = math.max(0, math.ceil((token - parts) / flow)), math.ceil((capacity - parts) / flow)
return {granted, math.floor(parts / token), next_ms, full_ms}
"""


class Buckets:
    """One for each key that has a limit. It is gone from Redis once it is full."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._draw = client.register_script(_DRAW)

    async def draw(self, key_id: str, limit: RateLimit, wanted: int) -> Draw:
        """Raises `Unavailable` where Redis is away."""
        with unavailable_if_refused():
            answer: Any = await self._draw(
                keys=[f"limit:{key_id}"], args=[limit.requests, limit.window_s * 1000, wanted]
            )
        return Draw(*answer)

    async def close(self) -> None:
        await self._client.aclose()
