"""Locks: one holder, renewed while it works, and a token by which the database knows the newest."""

import itertools
import threading

import pytest
import redis

from app.adapters.locks import Locks
from app.adapters.redis_clients import make_redis
from app.adapters.store import Store
from app.errors import LockHeld, LockLost, Unavailable
from tests.support.system import free_port
from tests.support.waiting import eventually


def test_a_lock_has_one_holder_and_is_free_afterwards(valkey: redis.Redis) -> None:
    locks = Locks(valkey, ttl_s=30)
    with locks.hold("a"):
        with pytest.raises(LockHeld), locks.hold("a"):
            pytest.fail("held twice")
        with locks.hold("b"):
            assert valkey.exists("lock:a", "lock:b") == 2
    assert valkey.exists("lock:a", "lock:b") == 0
    with locks.hold("a"):
        pass


def test_who_waits_gets_the_lock_when_it_is_free(valkey: redis.Redis) -> None:
    locks, tokens = Locks(valkey, ttl_s=30), []
    waits = threading.Event()

    def second() -> None:
        waits.set()
        with locks.hold("a", wait_s=20) as token:
            tokens.append(token)

    thread = threading.Thread(target=second)
    with locks.hold("a") as first:
        thread.start()
        waits.wait()
        assert tokens == []
    thread.join()
    assert tokens[0] > first


def test_an_error_frees_the_lock(valkey: redis.Redis) -> None:
    locks = Locks(valkey, ttl_s=30)
    with pytest.raises(ZeroDivisionError), locks.hold("a"):
        raise ZeroDivisionError
    with locks.hold("a"):
        pass


def test_tokens_rise_also_when_redis_has_forgotten_everything(valkey: redis.Redis) -> None:
    locks, tokens = Locks(valkey, ttl_s=30), []
    for n in range(60):
        if n % 3 == 0:
            valkey.flushall()
        with locks.hold("a") as token:
            tokens.append(token)
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**53, "Lua's numbers are exact up to here"


def test_tokens_rise_also_when_the_clock_was_set_back(valkey: redis.Redis) -> None:
    seconds, _ = valkey.time()
    future = (seconds + 3600) * 1_000_000
    valkey.set("fence:a", future)
    with Locks(valkey, ttl_s=30).hold("a") as token:
        assert token == future + 1


def test_a_lock_is_renewed_for_as_long_as_it_is_held(valkey: redis.Redis) -> None:
    with Locks(valkey, ttl_s=0.3).hold("a"):
        lives: list[int] = []

        def renewals() -> int:
            lives.append(valkey.pttl("lock:a"))
            return sum(later > earlier for earlier, later in itertools.pairwise(lives))

        eventually(lambda: renewals() >= 6)  # six times a tenth of a second: twice its life
        assert min(lives) > 0
        with pytest.raises(LockHeld), Locks(valkey, ttl_s=30).hold("a"):
            pytest.fail("held twice")


def test_a_lock_that_was_lost_is_not_taken_from_its_new_holder(valkey: redis.Redis) -> None:
    locks = Locks(valkey, ttl_s=30)
    with locks.hold("a") as old:
        valkey.delete("lock:a")
        with locks.hold("a") as new:
            assert new > old
            theirs = valkey.get("lock:a")
            with pytest.raises(LockHeld), locks.hold("a"):
                pytest.fail("held by three")
        valkey.set("lock:a", theirs or b"")
    assert valkey.get("lock:a") == theirs, "the first holder has not freed what is not its own any more"


def test_the_database_lets_only_the_newest_holder_write(valkey: redis.Redis, store: Store) -> None:
    locks = Locks(valkey, ttl_s=30)
    with locks.hold("a") as old:
        valkey.flushall()
        with locks.hold("a") as new, store.transaction() as tx:
            tx.events.check_fence("a", new)

        def write_late() -> None:
            with store.transaction() as tx:
                tx.events.claim(["late"])
                tx.events.check_fence("a", old)

        with pytest.raises(LockLost):
            write_late()
    with store.transaction() as tx:
        assert not tx.events.processed("late")
        tx.events.check_fence("a", new)
        tx.events.check_fence("b", 1)


def test_a_redis_that_is_away_is_not_a_lock_that_is_held() -> None:
    with (
        make_redis(f"redis://127.0.0.1:{free_port()}/0", 1) as client,
        pytest.raises(Unavailable),
        Locks(client, 1).hold("a"),
    ):
        pytest.fail("nothing was held")
