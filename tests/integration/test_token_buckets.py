"""The shared buckets of rate limits in a real Valkey: as the one in memory, and however many draw at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.adapters.rate_limits import LimitReached, RateLimits
from app.adapters.redis_clients import make_async_redis
from app.adapters.token_buckets import Buckets
from app.bootstrap import monotonic_ms
from app.domain.api_key import LONGEST_WINDOW_S, MOST_REQUESTS, Caller, RateLimit, Scope
from app.domain.token_bucket import Draw, TokenBucket
from app.errors import Unavailable

SLOW = RateLimit(requests=100, window_s=3600)
"""Nothing flows in during a test."""


def with_buckets(url: str, count: int, play: Callable[[list[Buckets]], Awaitable[None]]) -> None:
    async def run() -> None:
        buckets = [Buckets(make_async_redis(url, 5)) for _ in range(count)]
        try:
            async with asyncio.timeout(30):
                await play(buckets)
        finally:
            for one in buckets:
                await one.close()

    asyncio.run(run())


def test_a_bucket_is_full_at_first_and_gives_what_it_has(valkey: redis.Redis, valkey_url: str) -> None:
    async def play(buckets: list[Buckets]) -> None:
        (one,) = buckets
        assert await one.draw("k", SLOW, 30) == Draw(30, 70, 0, 30 * 36_000)
        draw = await one.draw("k", SLOW, 90)
        assert (draw.granted, draw.left) == (70, 0)
        assert 35_000 < draw.next_ms <= 36_000
        draw = await one.draw("k", SLOW, 1)
        assert (draw.granted, draw.left) == (0, 0)
        assert (await one.draw("other", SLOW, 1)).granted == 1

    with_buckets(valkey_url, 1, play)
    assert 0 < valkey.pttl("limit:k") <= 3_600_000


def test_tokens_flow_in_by_the_clock_of_redis(valkey: redis.Redis, valkey_url: str) -> None:
    """Its clock cannot be moved; what it has noted can."""
    limit = RateLimit(requests=60, window_s=60)

    async def play(buckets: list[Buckets]) -> None:
        (one,) = buckets
        await one.draw("k", limit, 60)
        noted = int(valkey.hget("limit:k", "at") or 0)
        valkey.hset("limit:k", "at", noted - 10_000)
        assert (await one.draw("k", limit, 60)).granted == 10
        valkey.hset("limit:k", "at", noted + 3_600_000)  # the clock was set back since
        draw = await one.draw("k", limit, 60)
        assert draw.granted == 0
        assert 0 < draw.next_ms <= 1_000
        valkey.hset("limit:k", "at", noted - 10_000_000)
        assert (await one.draw("k", limit, 100)).granted == 60, "it holds no more than its limit"

    with_buckets(valkey_url, 1, play)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        RateLimit,
        requests=st.one_of(st.integers(1, 50), st.integers(1, MOST_REQUESTS), st.just(MOST_REQUESTS)),
        window_s=st.one_of(st.integers(1, 100), st.integers(1, LONGEST_WINDOW_S), st.just(LONGEST_WINDOW_S)),
    ),
    st.lists(
        st.tuples(st.integers(0, 100_000), st.one_of(st.integers(0, 60), st.integers(0, MOST_REQUESTS))), max_size=8
    ),
)
def test_it_gives_what_the_bucket_in_memory_gives(
    valkey: redis.Redis, valkey_url: str, limit: RateLimit, steps: list[tuple[int, int]]
) -> None:
    """Time passes when what the bucket has noted of it is set back; what it notes says how much has passed."""

    async def play(buckets: list[Buckets]) -> None:
        in_memory, now = TokenBucket(limit, 1, 0), 0
        valkey.delete("limit:k")
        assert await buckets[0].draw("k", limit, 0) == in_memory.draw(0, 0)
        for after_ms, wanted in steps:
            noted = int(valkey.hget("limit:k", "at") or 0) - after_ms
            valkey.hset("limit:k", "at", noted)
            drawn = await buckets[0].draw("k", limit, wanted)
            now += int(valkey.hget("limit:k", "at") or 0) - noted
            assert drawn == in_memory.draw(wanted, now)

    with_buckets(valkey_url, 1, play)


def test_of_all_who_draw_at_once_nobody_gets_a_token_twice(valkey_url: str) -> None:
    async def play(buckets: list[Buckets]) -> None:
        draws = await asyncio.gather(*(one.draw("k", SLOW, 1 + n % 3) for one in buckets for n in range(50)))
        assert sum(draw.granted for draw in draws) == 100

    with_buckets(valkey_url, 8, play)


@pytest.mark.parametrize("clients", [1, 5])
def test_processes_that_draw_lots_pass_on_the_limit_and_no_more(valkey_url: str, clients: int) -> None:
    limit = RateLimit(requests=2_000, window_s=3600)
    who = Caller("k" * 12, frozenset({Scope.READ}), float("inf"), limit)

    async def play(buckets: list[Buckets]) -> None:
        processes = [RateLimits(one.draw, clients, monotonic_ms) for one in buckets]

        async def be_a_client(process: RateLimits) -> int:
            passed = 0
            for _ in range(3_000):
                if process.at_once(who) is None:
                    try:
                        await process.take(who)
                    except LimitReached:
                        break
                passed += 1
                await asyncio.sleep(0)
            return passed

        began = time.monotonic()
        passed = sum(await asyncio.gather(*map(be_a_client, processes)))
        flowed_in = limit.per_ms * (time.monotonic() - began) * 1000
        assert passed <= 2_000 + flowed_in
        assert passed >= 2_000 * 0.5, "what lies in lots of processes that were refused is not lost before its time"
        for process in processes:
            await process.close()

    with_buckets(valkey_url, clients, play)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    async def play(buckets: list[Buckets]) -> None:
        with pytest.raises(Unavailable):
            await buckets[0].draw("k", SLOW, 1)

    with_buckets("redis://127.0.0.1:1", 1, play)
