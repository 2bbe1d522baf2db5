"""Rate limits: the bucket against the simplest that could be, and the tokens that processes have at hand."""

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.rate_limits import AWAY_MS, LOT_MS, LimitReached, RateLimits
from app.domain.api_key import Caller, RateLimit, Scope
from app.domain.token_bucket import Draw, TokenBucket
from app.errors import Unavailable

limits = st.builds(RateLimit, requests=st.integers(1, 500), window_s=st.integers(1, 100))
steps = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 50)), max_size=30)


class Reference:
    """A bucket in exact fractions: what flows in, what flows out, never more than it holds."""

    def __init__(self, limit: RateLimit) -> None:
        self.capacity = Fraction(limit.requests)
        self.per_ms = Fraction(limit.requests, limit.window_s * 1000)
        self.tokens = self.capacity

    def draw(self, wanted: int, after_ms: int) -> int:
        self.tokens = min(self.capacity, self.tokens + after_ms * self.per_ms)
        granted = min(wanted, int(self.tokens))
        self.tokens -= granted
        return granted


@settings(max_examples=200)
@given(limits, steps)
def test_a_bucket_gives_what_the_simplest_one_gives(limit: RateLimit, steps: list[tuple[int, int]]) -> None:
    bucket, reference, now = TokenBucket(limit, 1, 0), Reference(limit), 0
    for after_ms, wanted in steps:
        now += after_ms
        draw = bucket.draw(wanted, now)
        assert draw.granted == reference.draw(wanted, after_ms)
        assert draw.left == int(reference.tokens)
        assert (draw.next_ms == 0) == (draw.left >= 1)
        if draw.next_ms:
            for wait_ms, left in ((draw.next_ms - 1, 0), (1, 1)):
                now += wait_ms
                reference.draw(0, wait_ms)
                assert bucket.draw(0, now).left == left, "it says exactly when it has another token"


class Clock:
    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> int:
        return self.ms


class Shared:
    """The bucket that all processes draw from; `draws` says how often, `away` that nobody reaches it."""

    def __init__(self, limit: RateLimit, clock: Clock) -> None:
        self.bucket, self.clock = TokenBucket(limit, 1, 0), clock
        self.draws = 0
        self.away = False

    async def draw(self, key_id: str, limit: RateLimit, wanted: int) -> Draw:
        self.draws += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("Redis is away")
        return self.bucket.draw(wanted, self.clock())


def caller(limit: RateLimit) -> Caller:
    return Caller("k" * 12, frozenset({Scope.READ}), float("inf"), limit)


async def ask(process: RateLimits, who: Caller) -> bool:
    """As a request does: with what is at hand, or else waiting for it."""
    if process.at_once(who) is not None:
        return True
    try:
        await process.take(who)
    except LimitReached:
        return False
    return True


@settings(max_examples=200)
@given(
    limits,
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(1, 40)), max_size=40),
)
def test_processes_together_never_pass_on_more_than_the_bucket_has(
    limit: RateLimit, steps: list[tuple[int, int, int]]
) -> None:
    """By which process, after how many ms, how many requests at once."""

    async def play() -> None:
        clock, who, passed = Clock(), caller(limit), 0
        shared = Shared(limit, clock)
        processes = [RateLimits(shared.draw, 3, clock) for _ in range(3)]
        for process, after_ms, count in steps:
            clock.ms += after_ms
            passed += sum(await asyncio.gather(*(ask(processes[process], who) for _ in range(count))))
            assert passed <= limit.requests + limit.per_ms * clock.ms + 1e-6
        for process in processes:
            await process.close()

    asyncio.run(play())


def test_a_client_that_asks_alone_gets_its_whole_limit() -> None:
    async def play() -> int:
        clock, limit = Clock(), RateLimit(requests=100, window_s=60)
        process = RateLimits(Shared(limit, clock).draw, 2, clock)
        passed = sum([await ask(process, caller(limit)) for _ in range(150)])
        await process.close()
        return passed

    assert asyncio.run(play()) == 100


def test_what_is_asked_for_often_is_drawn_in_lots_ahead_of_use_and_what_is_not_singly() -> None:
    async def play(pause_ms: int, count: int) -> tuple[int, int]:
        clock, limit, waited = Clock(), RateLimit(requests=100_000, window_s=10), 0
        shared, who = Shared(limit, clock), caller(limit)
        process = RateLimits(shared.draw, 2, clock)
        for n in range(count):
            clock.ms += pause_ms if n % 4 == 0 else 0
            if process.at_once(who) is None:
                waited += 1
                await process.take(who)
            await asyncio.sleep(0)  # whoever draws ahead has its turn
        await process.close()
        return shared.draws, waited

    draws, waited = asyncio.run(play(1, 10_000))
    assert draws < 100
    assert waited < 20
    draws, _ = asyncio.run(play(2 * LOT_MS, 40))
    assert draws <= 40


def test_many_that_wait_share_a_draw() -> None:
    async def play() -> int:
        clock, limit = Clock(), RateLimit(requests=1000, window_s=60)
        shared, who = Shared(limit, clock), caller(limit)
        process = RateLimits(shared.draw, 2, clock)
        assert all(await asyncio.gather(*(ask(process, who) for _ in range(200))))
        await process.close()
        return shared.draws

    assert asyncio.run(play()) <= 10


def test_a_bucket_that_is_empty_is_not_asked_again_before_it_has_a_token() -> None:
    async def play() -> None:
        clock, limit = Clock(), RateLimit(requests=2, window_s=60)
        shared, who = Shared(limit, clock), caller(limit)
        process = RateLimits(shared.draw, 1, clock)
        assert [await ask(process, who) for _ in range(3)] == [True, True, False]
        before = shared.draws
        assert [await ask(process, who) for _ in range(100)] == [False] * 100
        assert shared.draws == before
        with pytest.raises(LimitReached) as reached:
            await process.take(who)
        assert reached.value.retry_after_s == 30
        assert reached.value.standing.left == 0
        clock.ms += 30_000
        assert await ask(process, who)
        await process.close()

    asyncio.run(play())


def test_tokens_that_nobody_uses_are_lost_instead_of_used_later() -> None:
    async def play() -> None:
        clock, limit = Clock(), RateLimit(requests=100_000, window_s=10)
        process, who = RateLimits(Shared(limit, clock).draw, 1, clock), caller(limit)
        for _ in range(50):
            await ask(process, who)
        assert process.at_once(who) is not None
        clock.ms += LOT_MS
        assert process.at_once(who) is None
        await process.close()

    asyncio.run(play())


def test_without_redis_each_process_keeps_its_part_of_the_limit_by_itself() -> None:
    async def play() -> None:
        clock, limit = Clock(), RateLimit(requests=100, window_s=10)
        shared, who = Shared(limit, clock), caller(limit)
        shared.away = True
        processes = [RateLimits(shared.draw, 4, clock) for _ in range(4)]
        for process in processes:
            assert sum([await ask(process, who) for _ in range(100)]) == 25
            assert shared.draws == 1 + processes.index(process), "one try, and none for a while"
        clock.ms += AWAY_MS - 1
        assert sum([await ask(processes[0], who) for _ in range(100)]) == 2
        assert shared.draws == 4
        shared.away = False
        clock.ms += 1_000
        assert await ask(processes[0], who)
        assert shared.draws == 5
        for process in processes:
            await process.close()

    asyncio.run(play())


def test_a_small_limit_leaves_each_process_a_token_without_redis() -> None:
    assert TokenBucket(RateLimit(requests=1, window_s=60), 8, 0).draw(5, 0).granted == 1
