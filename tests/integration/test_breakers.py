"""Circuit breakers: what they count, when they open and close, and that all processes agree. Time passes by writing
into the past when a state ends."""

import threading
from typing import Any

import pytest
import redis

from app.adapters.breakers import APPLYING, CACHE, NAMES, POSTGRESQL, STORE_LIMITS, WORK_LIMITS, Breakers
from app.adapters.redis_clients import make_redis
from app.errors import Unavailable
from app.services.ports import BreakerState, Tally
from tests.support.lossy import LossyClient
from tests.support.system import free_port

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


@pytest.fixture
def breakers(valkey: redis.Redis) -> Breakers:
    return Breakers(valkey)


def open_it(breakers: Breakers, name: str = POSTGRESQL) -> None:
    assert breakers.note(name, bad=100, reason="boom") is OPEN


def time_passes(valkey: redis.Redis, name: str = POSTGRESQL) -> None:
    """What ends some time in the future has ended."""
    valkey.hset(f"breaker:{name}", mapping={"until": 1, "since": 1})


def lasts_ms(valkey: redis.Redis, name: str = POSTGRESQL) -> int:
    seconds, _ = valkey.time()
    until: Any = valkey.hget(f"breaker:{name}", "until")
    return int(until) - int(seconds) * 1000


def test_it_is_closed_until_so_many_have_failed(breakers: Breakers) -> None:
    assert breakers.let_through(NAMES) is CLOSED
    for _ in range(STORE_LIMITS.failures - 1):
        assert breakers.note(POSTGRESQL, bad=1, reason="away") is CLOSED
    assert breakers.let_through([POSTGRESQL]) is CLOSED
    assert breakers.note(POSTGRESQL, bad=1, reason="still away") is OPEN
    assert breakers.let_through([POSTGRESQL]) is OPEN
    assert breakers.tallies()[POSTGRESQL] == Tally(OPEN, 0, 0, "still away")


def test_many_failures_among_more_successes_do_not_open_it(breakers: Breakers) -> None:
    failures = WORK_LIMITS.failures
    assert breakers.note(APPLYING, good=failures + 2) is CLOSED
    assert breakers.note(APPLYING, bad=failures + 1) is CLOSED
    assert breakers.tallies()[APPLYING][:3] == (CLOSED, failures + 2, failures + 1)
    assert breakers.note(APPLYING, bad=1) is OPEN, "half of all"


def test_few_failures_do_not_open_it_though_all_have_failed(breakers: Breakers) -> None:
    assert breakers.note(APPLYING, bad=WORK_LIMITS.failures - 1) is CLOSED
    assert breakers.note(APPLYING, good=1) is CLOSED
    assert breakers.note(APPLYING, bad=1) is OPEN


def test_what_was_counted_before_the_window_is_forgotten(breakers: Breakers, valkey: redis.Redis) -> None:
    breakers.note(POSTGRESQL, good=1000, bad=STORE_LIMITS.failures - 1)
    time_passes(valkey)
    assert breakers.note(POSTGRESQL, bad=1) is CLOSED
    assert breakers.tallies()[POSTGRESQL][:3] == (CLOSED, 0, 1)


def test_a_window_begins_with_its_first_outcome_and_is_not_moved(breakers: Breakers, valkey: redis.Redis) -> None:
    breakers.note(POSTGRESQL, bad=1)
    began = valkey.hget("breaker:postgresql", "since")
    breakers.note(POSTGRESQL, bad=1)
    assert valkey.hget("breaker:postgresql", "since") == began


def test_one_try_at_a_time_is_let_through_when_its_time_is_over(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers)
    time_passes(valkey)
    assert [breakers.let_through([POSTGRESQL]) for _ in range(3)] == [HALF_OPEN, OPEN, OPEN]
    assert breakers.tallies()[POSTGRESQL].state is HALF_OPEN
    assert breakers.note(POSTGRESQL, good=1) is CLOSED
    assert [breakers.let_through([POSTGRESQL]) for _ in range(2)] == [CLOSED, CLOSED]
    assert breakers.tallies()[POSTGRESQL] == Tally(CLOSED, 0, 0, "")


def test_of_many_that_ask_at_once_one_is_let_through(breakers: Breakers, valkey: redis.Redis, valkey_url: str) -> None:
    open_it(breakers)
    time_passes(valkey)
    answers: list[BreakerState] = []
    start = threading.Barrier(8)

    def ask() -> None:
        with make_redis(valkey_url, 5) as client:
            start.wait()
            answers.append(Breakers(client).let_through([CACHE, POSTGRESQL]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.value for answer in answers) == ["half_open"] + ["open"] * 7


def test_a_try_that_fails_opens_it_for_twice_as_long_up_to_a_limit(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers)
    lasted = [lasts_ms(valkey)]
    for _ in range(4):
        time_passes(valkey)
        assert breakers.let_through([POSTGRESQL]) is HALF_OPEN
        assert breakers.note(POSTGRESQL, bad=1, reason="no") is OPEN
        lasted.append(lasts_ms(valkey))
    limits = [1000, 2000, 4000, 5000, 5000]
    assert all(limit <= ms < limit + 1000 for ms, limit in zip(lasted, limits, strict=True)), lasted
    time_passes(valkey)
    breakers.let_through([POSTGRESQL])
    breakers.note(POSTGRESQL, good=1)
    open_it(breakers)
    assert lasts_ms(valkey) < 2000, "once it was closed it begins anew"


def test_a_try_that_never_reports_is_given_up(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers)
    time_passes(valkey)
    assert breakers.let_through([POSTGRESQL]) is HALF_OPEN
    assert 0 < lasts_ms(valkey) <= STORE_LIMITS.try_ms + 1000
    assert breakers.let_through([POSTGRESQL]) is OPEN
    time_passes(valkey)
    assert [breakers.let_through([POSTGRESQL]) for _ in range(2)] == [HALF_OPEN, OPEN]


def test_a_try_that_had_nothing_to_do_gives_its_turn_back(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers)
    time_passes(valkey)
    assert breakers.let_through([POSTGRESQL]) is HALF_OPEN
    assert breakers.note(POSTGRESQL) is HALF_OPEN
    assert [breakers.let_through([POSTGRESQL]) for _ in range(2)] == [HALF_OPEN, OPEN]


def test_nothing_changes_where_nothing_is_noted(breakers: Breakers, valkey: redis.Redis) -> None:
    assert breakers.note(POSTGRESQL) is CLOSED
    assert valkey.exists("breaker:postgresql") == 0
    open_it(breakers)
    assert breakers.note(POSTGRESQL) is OPEN


def test_outcomes_of_what_began_before_it_opened_change_nothing(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers)
    before = valkey.hgetall("breaker:postgresql")
    assert breakers.note(POSTGRESQL, good=100) is OPEN
    assert breakers.note(POSTGRESQL, bad=100, reason="late") is OPEN
    assert valkey.hgetall("breaker:postgresql") == before


def test_work_begins_only_if_all_that_it_needs_let_it(breakers: Breakers, valkey: redis.Redis) -> None:
    open_it(breakers, POSTGRESQL)
    open_it(breakers, APPLYING)
    time_passes(valkey, POSTGRESQL)
    assert breakers.let_through([POSTGRESQL, CACHE, APPLYING]) is OPEN
    assert breakers.tallies()[POSTGRESQL].state is OPEN, "it was not asked for a try in vain"
    time_passes(valkey, APPLYING)
    assert breakers.let_through([POSTGRESQL, CACHE, APPLYING]) is HALF_OPEN
    assert breakers.let_through([CACHE, APPLYING]) is OPEN
    assert breakers.let_through([CACHE]) is CLOSED
    breakers.note(POSTGRESQL, good=1)
    assert breakers.let_through([POSTGRESQL, CACHE, APPLYING]) is OPEN, "the other one's try has not reported"
    breakers.note(APPLYING, good=1)
    assert breakers.let_through([POSTGRESQL, CACHE, APPLYING]) is CLOSED


def test_it_can_be_closed_by_hand(breakers: Breakers) -> None:
    open_it(breakers)
    breakers.reset(POSTGRESQL)
    assert breakers.let_through([POSTGRESQL]) is CLOSED
    assert breakers.tallies() == dict.fromkeys(NAMES, Tally(CLOSED, 0, 0, ""))


def test_an_answer_that_was_lost_leaves_it_usable(breakers: Breakers, valkey: redis.Redis, valkey_url: str) -> None:
    lossy = LossyClient(valkey_url)
    breakers.let_through(NAMES)
    open_it(breakers)
    time_passes(valkey)
    others = Breakers(lossy.client)
    with lossy.losing():
        assert others.let_through([POSTGRESQL]) is OPEN, "its own first request has the try, which is given up"
    time_passes(valkey)
    assert others.let_through([POSTGRESQL]) is HALF_OPEN
    with lossy.losing():
        assert others.note(POSTGRESQL, good=1) is CLOSED
    lossy.client.close()


def test_without_redis_nothing_is_let_through() -> None:
    with make_redis(f"redis://127.0.0.1:{free_port()}/0", 1) as client:
        with pytest.raises(Unavailable):
            Breakers(client).let_through([POSTGRESQL])
        with pytest.raises(Unavailable):
            Breakers(client).note(POSTGRESQL, bad=1)
