"""Locks: one holder, renewed while it works, no request lost, and a token by which the database knows the newest."""

import itertools
import threading

import pytest
import redis

from app.adapters.locks import Held, Locks
from app.adapters.redis_clients import make_redis
from app.adapters.store import Store
from app.errors import LockLost, Unavailable
from app.services.ports import Turn
from tests.support.lossy import LossyClient
from tests.support.system import free_port
from tests.support.waiting import eventually


def nothing(held: Held) -> bool:
    return False


@pytest.fixture
def locks(valkey: redis.Redis) -> Locks:
    return Locks(valkey, ttl_s=30)


def test_a_lock_has_one_holder_and_is_free_afterwards(locks: Locks, valkey: redis.Redis) -> None:
    def work(held: Held) -> bool:
        assert locks.in_rounds("b", nothing, 10) is Turn.DONE
        assert valkey.exists("lock:a") == 1
        return False

    assert locks.in_rounds("a", work, 10) is Turn.DONE
    assert valkey.exists("lock:a", "lock:b") == 0
    assert locks.in_rounds("a", nothing, 10) is Turn.DONE


def test_work_is_called_until_there_is_no_more(locks: Locks) -> None:
    left = [3, 2, 1]
    assert locks.in_rounds("a", lambda held: bool(left and left.pop()), 10) is Turn.DONE
    assert left == []


def test_what_is_asked_between_the_last_look_and_the_release_is_done_in_another_round(locks: Locks) -> None:
    """The holder has looked for the last time and found nothing; then work arrives, and whoever brings it finds the
    lock held. Nobody else will come for it."""
    inbox, done = ["first"], []

    def work(held: Held) -> bool:
        taken = inbox.copy()
        done.extend(taken)
        inbox.clear()
        if taken == ["first"]:
            return True
        if "late" not in done:
            inbox.append("late")
            assert locks.in_rounds("a", nothing, 10) is Turn.LEFT_TO_HOLDER
        return False

    assert locks.in_rounds("a", work, 10) is Turn.DONE
    assert done == ["first", "late"]


def test_many_who_bring_work_at_once_lose_none_of_it(valkey_url: str) -> None:
    inbox: list[int] = []
    done: list[int] = []
    start = threading.Barrier(8)

    def work(held: Held) -> bool:
        if not inbox:
            return False
        done.append(inbox.pop())
        return True

    def bring(first: int) -> None:
        with make_redis(valkey_url, 5) as client:
            own = Locks(client, 30)
            start.wait()
            for n in range(first, first + 100):
                inbox.append(n)
                own.in_rounds("a", work, 10)

    threads = [threading.Thread(target=bring, args=(n * 100,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(800))


def test_a_turn_that_is_over_says_so_and_frees_the_lock(locks: Locks) -> None:
    calls = []
    assert locks.in_rounds("a", lambda held: calls.append(1) is None, 0) is Turn.UNFINISHED
    assert len(calls) == 1
    assert locks.in_rounds("a", nothing, 0) is Turn.DONE, "nothing is left: a turn that is over has ended all the same"


def test_a_turn_is_over_where_the_process_shall_end(valkey: redis.Redis, locks: Locks) -> None:
    calls = []
    leaving = Locks(valkey, ttl_s=30, stopping=lambda: bool(calls))
    assert leaving.in_rounds("a", lambda held: calls.append(1) is None, 10**9) is Turn.UNFINISHED
    assert len(calls) == 1
    assert locks.in_rounds("a", nothing, 10) is Turn.DONE, "the lock is free"


def test_an_error_frees_the_lock(locks: Locks) -> None:
    def fail(held: Held) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        locks.in_rounds("a", fail, 10)
    assert locks.in_rounds("a", nothing, 10) is Turn.DONE


def tokens_of(locks: Locks) -> int:
    tokens: list[int] = []
    locks.in_rounds("a", lambda held: tokens.append(held.token) is not None, 10)
    return tokens[0]


def test_tokens_rise_also_when_redis_has_forgotten_everything(locks: Locks, valkey: redis.Redis) -> None:
    tokens = []
    for n in range(60):
        if n % 3 == 0:
            valkey.flushall()
        tokens.append(tokens_of(locks))
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**53, "Lua's numbers are exact up to here"


def test_tokens_rise_also_when_the_clock_was_set_back(locks: Locks, valkey: redis.Redis) -> None:
    seconds, _ = valkey.time()
    future = (seconds + 3600) * 1_000_000
    valkey.set("fence:a", future)
    assert tokens_of(locks) == future + 1


def test_a_lock_is_renewed_for_as_long_as_it_is_held(valkey: redis.Redis) -> None:
    locks = Locks(valkey, ttl_s=1.5)  # a machine under tests may hold up a renewal for a few tenths of a second

    def work(held: Held) -> bool:
        lives: list[int] = []

        def renewals() -> int:
            lives.append(valkey.pttl("lock:a"))
            return sum(later > earlier for earlier, later in itertools.pairwise(lives))

        eventually(lambda: renewals() >= 6)  # six times half a second: twice its life
        assert min(lives) > 0
        held.check()
        assert Locks(valkey, ttl_s=30).in_rounds("a", nothing, 10) is Turn.LEFT_TO_HOLDER
        return False

    locks.in_rounds("a", work, 10)


def test_a_lock_that_was_lost_stops_its_holder_and_is_not_taken_from_the_new_one(valkey: redis.Redis) -> None:
    locks = Locks(valkey, ttl_s=0.3)
    theirs = []

    def work(held: Held) -> bool:
        valkey.delete("lock:a")

        def other(new: Held) -> bool:
            assert new.token > held.token
            theirs.append(valkey.get("lock:a"))
            return False

        locks.in_rounds("a", other, 10)
        valkey.set("lock:a", theirs[0])

        def lost() -> bool:
            try:
                held.check()
            except LockLost:
                return True
            return False

        eventually(lost)
        return True

    with pytest.raises(LockLost):
        locks.in_rounds("a", work, 10)
    assert valkey.get("lock:a") == theirs[0], "the first holder has not freed what is not its own any more"


def test_the_database_lets_only_the_newest_holder_write(locks: Locks, valkey: redis.Redis, store: Store) -> None:
    newer: list[int] = []

    def work(held: Held) -> bool:
        valkey.flushall()

        def other(new: Held) -> bool:
            newer.append(new.token)
            with store.transaction() as tx:
                tx.events.check_fence("a", new.token)
            return False

        locks.in_rounds("a", other, 10)
        with store.transaction() as tx:
            tx.events.ask_claim(["late"])()
            tx.events.check_fence("a", held.token)
        return False

    with pytest.raises(LockLost):
        locks.in_rounds("a", work, 10)
    with store.transaction() as tx:
        assert not tx.events.processed("late")
        tx.events.check_fence("a", newer[0])
        tx.events.check_fence("b", 1)


def test_one_hint_is_on_its_way_until_somebody_asks(locks: Locks, valkey: redis.Redis) -> None:
    assert [locks.hint("a"), locks.hint("a"), locks.hint("b")] == [True, False, True]
    assert locks.idle(["a", "b", "c"]) == ["c"]
    locks.in_rounds("a", nothing, 10)
    assert locks.idle(["a", "b", "c"]) == ["a", "c"]
    assert locks.hint("a")
    assert 0 < valkey.pttl("hint:a") <= 5000


def test_a_redis_that_is_away_is_not_a_lock_that_is_held() -> None:
    with make_redis(f"redis://127.0.0.1:{free_port()}/0", 1) as client, pytest.raises(Unavailable):
        Locks(client, 1).in_rounds("a", nothing, 10)


def test_answers_that_are_lost_neither_lose_a_lock_nor_keep_one(valkey_url: str, valkey: redis.Redis) -> None:
    """Clients ask once more then: the second request finds what the first one did."""
    lossy = LossyClient(valkey_url)
    locks = Locks(lossy.client, ttl_s=30)
    assert locks.in_rounds("a", nothing, 10) is Turn.DONE
    with lossy.losing():
        assert locks.in_rounds("a", nothing, 10) is Turn.DONE, "the lock is its own"
    with lossy.losing(nth=2):
        assert locks.in_rounds("a", nothing, 10) is Turn.DONE, "it has freed the lock"
    with lossy.losing():
        assert locks.hint("a"), "nobody else will queue the task"
    assert valkey.exists("lock:a") == 0
    lossy.client.close()
