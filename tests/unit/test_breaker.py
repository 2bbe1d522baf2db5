"""When a breaker lets calls through."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Unavailable
from app.services.breaker import Breaker

FAILURES, OPEN_MS = 3, 1000


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def passes(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except Unavailable:
        return False
    return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("the store", FAILURES, OPEN_MS, clock)


@pytest.fixture
def opened(breaker: Breaker) -> Breaker:
    for _ in range(FAILURES):
        breaker.failed()
    return breaker


def test_it_opens_after_so_many_failures_in_a_row(breaker: Breaker) -> None:
    for _ in range(FAILURES - 1):
        breaker.failed()
        assert passes(breaker)
    breaker.failed()
    assert not passes(breaker)


def test_a_try_that_takes_long_is_the_only_one_until_it_is_over(clock: Clock) -> None:
    breaker = Breaker("the store", FAILURES, OPEN_MS, clock, try_ms=3 * OPEN_MS)
    for _ in range(FAILURES):
        breaker.failed()
    clock.now += OPEN_MS
    assert passes(breaker)
    clock.now += 2 * OPEN_MS
    assert not passes(breaker)
    breaker.failed()
    clock.now += OPEN_MS - 1
    assert not passes(breaker)
    clock.now += 1
    assert passes(breaker)
    breaker.succeeded()
    assert [passes(breaker) for _ in range(3)] == [True] * 3


def test_a_success_in_between_starts_the_count_anew(breaker: Breaker) -> None:
    for _ in range(2 * FAILURES):
        breaker.failed()
        breaker.succeeded()
    assert passes(breaker)


def test_it_says_what_has_failed(opened: Breaker) -> None:
    with pytest.raises(Unavailable, match="the store has failed repeatedly"):
        opened.check()


def test_after_its_time_one_call_tries_and_the_others_do_not_wait_for_it(opened: Breaker, clock: Clock) -> None:
    clock.now = OPEN_MS - 1
    assert not passes(opened)
    clock.now = OPEN_MS
    assert [passes(opened) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(("outcome", "then"), [(Breaker.succeeded, True), (Breaker.failed, False)])
def test_the_call_that_tries_decides(
    opened: Breaker, clock: Clock, outcome: Callable[[Breaker], None], then: bool
) -> None:
    clock.now = OPEN_MS
    opened.check()
    outcome(opened)
    assert passes(opened) == then
    assert opened.closed == then


def test_a_call_that_tries_and_never_ends_is_followed_by_another(opened: Breaker, clock: Clock) -> None:
    clock.now = OPEN_MS
    opened.check()
    clock.now = 2 * OPEN_MS
    assert passes(opened)


@given(st.lists(st.integers(0, OPEN_MS // 2), min_size=3, max_size=60))
def test_however_many_are_refused_it_tries_again_in_time(pauses: list[int]) -> None:
    clock = Clock()
    breaker = Breaker("the store", FAILURES, OPEN_MS, clock)
    for _ in range(FAILURES):
        breaker.failed()
    tried_at = 0
    for pause in pauses:
        clock.now += pause
        if passes(breaker):
            breaker.failed()
            tried_at = clock.now
        assert clock.now - tried_at < OPEN_MS
