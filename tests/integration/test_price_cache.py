"""The shared cache: versions never go backwards, leases give way to writers, names are never mixed up."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import numpy as np
import pytest
import redis

from app.adapters.price_cache import (
    CLEARED_AT,
    EVERYTHING,
    INVALIDATIONS,
    AsyncPriceCache,
    Lifetimes,
    PriceCache,
    clear,
)
from app.adapters.redis_clients import make_async_redis, make_redis
from app.domain.columns import Column, Table
from app.domain.sheet import EncodedSheet
from app.errors import Unavailable
from app.services.slots import UNKNOWN, Leased, Name, Slot
from tests.support.system import free_port
from tests.support.waiting import eventually

T = TypeVar("T")

LIFETIMES = Lifetimes(sheet_s=100, unknown_s=10, stale_s=50)
SHEET = EncodedSheet(
    product_key=1,
    location_key=1,
    product_id="P-1",
    location="NY",
    version=1,
    valid_until=None,
    payload=b'["P-1","NY"]',
)
NAME = ("P-1", "NY")
LEASED = -2
"""The version of a slot that nobody has filled yet."""


class Stored:
    """What the database has: the newest version of each row that `sheet` has made since the test began."""

    def __init__(self) -> None:
        self.keys: dict[Name, int] = {}
        self.versions: dict[int, int] = {}

    def store(self, sheet: EncodedSheet) -> EncodedSheet:
        key = self.keys.setdefault((sheet.product_id, sheet.location), len(self.keys) + 1)
        self.versions[key] = max(sheet.version, self.versions.get(key, 0))
        stored: EncodedSheet = msgspec.structs.replace(sheet, product_key=key)
        return stored

    def current(self, keys: Table) -> Column:
        return np.array([self.versions[key] for key in keys["product_key"].tolist()], np.int64)


stored = Stored()


@pytest.fixture(autouse=True)
def _nothing_is_stored() -> None:
    stored.keys.clear()
    stored.versions.clear()
    stored.store(SHEET)


def sheet(version: int, **fields: object) -> EncodedSheet:
    return stored.store(msgspec.structs.replace(SHEET, version=version, **fields))


def slot(version: int, payload: bytes = b"filled") -> Slot:
    now = int(time.time() * 1000)
    return Slot(version, now, now + 60_000, payload)


class Readers:
    """The readers' side, driven from a test that is not on an event loop."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _run(self, ask: Callable[[AsyncPriceCache], Awaitable[T]]) -> T:
        async def connected() -> T:
            cache = AsyncPriceCache(make_async_redis(self._url, 5), LIFETIMES)
            try:
                return await ask(cache)
            finally:
                await cache.close()

        return asyncio.run(connected())

    def get(self, *names: Name) -> list[Slot | None]:
        return self._run(lambda cache: cache.get(list(names)))

    def version(self, name: Name = NAME) -> int | None:
        (found,) = self.get(name)
        return found and found.version

    def lease(self, token: str, *, now: int | None = None, early: bool = False) -> Leased:
        now = now or int(time.time() * 1000)
        (leased,) = self._run(lambda cache: cache.lease([NAME], token, now, 5_000, early=early))
        return leased

    def fill(self, token: str, slot: Slot) -> None:
        self._run(lambda cache: cache.fill({NAME: slot}, token))


@pytest.fixture
def cache(valkey: redis.Redis) -> PriceCache:
    return PriceCache(valkey, LIFETIMES, stored.current)


@pytest.fixture
def readers(valkey_url: str) -> Readers:
    return Readers(valkey_url)


def test_a_sheet_comes_back_as_it_was_stored(cache: PriceCache, readers: Readers) -> None:
    cache.put([SHEET])
    (found,) = readers.get(NAME)
    assert found is not None
    assert found.payload == SHEET.payload
    assert abs(found.checked_at - time.time() * 1000) < 30_000
    assert not found.unknown


def test_an_older_sheet_never_replaces_a_newer_one(cache: PriceCache, readers: Readers) -> None:
    for version in (9, 10, 99, 100, 2**40, 2**40 + 1):
        cache.put([sheet(version)])
        cache.put([sheet(version - 1)])
        assert readers.version() == version


def test_a_newer_computation_of_the_same_version_replaces_it(cache: PriceCache, readers: Readers) -> None:
    again = sheet(3, payload=b"again")
    cache.put([sheet(3)])
    cache.put([again])
    (found,) = readers.get(NAME)
    assert found is not None
    assert found.payload == again.payload


def test_a_sheet_is_fresh_as_long_as_set_give_or_take_a_tenth_and_never_past_its_validity() -> None:
    now = 1_000_000
    lives = [(LIFETIMES.slot(1, None, b"", now).fresh_until - now) / 1000 for _ in range(500)]
    assert 90 <= min(lives) < 95
    assert 105 < max(lives) <= 110
    assert {LIFETIMES.slot(1, now + 5, b"", now).fresh_until for _ in range(20)} == {now + 5}
    assert LIFETIMES.slot(1, now + 10**9, b"", now).fresh_until < now + 111_000
    unknown = [(LIFETIMES.slot(UNKNOWN, None, b"", now).fresh_until - now) / 1000 for _ in range(100)]
    assert 9 <= min(unknown) < max(unknown) <= 11


def test_a_slot_stays_to_be_served_stale(cache: PriceCache, valkey: redis.Redis) -> None:
    cache.put([sheet(1, valid_until=int(time.time() * 1000) + 10)])
    assert 140_000 < valkey.pttl("price:NY/P-1") <= 150_000


def test_what_is_unknown_does_not_stay(readers: Readers, valkey: redis.Redis) -> None:
    """Anybody can ask for any number of products that are not there."""
    readers.lease("a")
    readers.fill("a", LIFETIMES.slot(UNKNOWN, None, b"no", int(time.time() * 1000)))
    assert 8_000 < valkey.pttl("price:NY/P-1") <= 11_000


def test_one_of_many_who_miss_gets_the_lease_and_may_fill_the_slot(readers: Readers) -> None:
    assert [readers.lease(token).granted for token in ("a", "b", "c")] == [True, False, False]
    assert readers.get(NAME) == [None]
    readers.fill("b", slot(7))
    assert readers.get(NAME) == [None]
    filled = slot(7)
    readers.fill("a", filled)
    assert readers.get(NAME) == [filled]
    readers.fill("a", slot(7, b"again"))
    assert readers.get(NAME) == [filled], "the lease ended with the filling"


def test_a_writers_update_takes_the_lease_away(cache: PriceCache, readers: Readers) -> None:
    """The reader loaded version 1 before the update, and comes to fill it in after the update."""
    assert readers.lease("reader").granted
    cache.put([sheet(2)])
    readers.fill("reader", slot(1))
    readers.fill("reader", slot(UNKNOWN))
    assert readers.version() == 2


def test_a_newer_sheet_replaces_an_older_one_without_a_lease_and_nothing_else(
    cache: PriceCache, readers: Readers
) -> None:
    """The reader loaded version 3, which its writer has yet to put; the put of version 2 took the lease away."""
    cache.put([sheet(2)])
    readers.fill("reader", slot(3))
    assert readers.version() == 3
    readers.lease("another", early=True)
    readers.fill("reader", slot(4))
    readers.fill("another", slot(3))
    assert readers.version() == 4, "nor does the lease help what is older"
    readers.lease("third", now=int(time.time() * 1000) + 10**6)
    readers.fill("third", slot(UNKNOWN))
    readers.fill("reader", slot(5))
    assert readers.version() == UNKNOWN, "which may be newer"


def test_the_lease_of_a_dead_reader_is_given_to_another(readers: Readers) -> None:
    now = int(time.time() * 1000)
    assert readers.lease("dead", now=now).granted
    assert not readers.lease("alive", now=now + 4_999).granted
    assert readers.lease("alive", now=now + 5_000).granted
    readers.fill("dead", slot(1))
    assert readers.get(NAME) == [None]


def test_a_fresh_slot_is_leased_only_early_and_can_be_read_meanwhile(cache: PriceCache, readers: Readers) -> None:
    cache.put([sheet(4)])
    assert not readers.lease("a").granted
    early = readers.lease("a", early=True)
    assert early.granted
    assert early.slot is not None
    assert readers.get(NAME) == [early.slot]
    readers.fill("a", slot(3))
    assert readers.version() == 4, "not with something older"
    readers.fill("a", slot(4, b"checked again"))
    assert readers.get(NAME) != [early.slot]


def test_what_is_unknown_is_remembered_with_its_reason_and_gives_way_to_any_sheet(
    cache: PriceCache, readers: Readers
) -> None:
    readers.lease("a")
    readers.fill("a", slot(UNKNOWN, b"there is no product 'P-1'"))
    (found,) = readers.get(NAME)
    assert found is not None
    assert (found.unknown, found.payload) == (True, b"there is no product 'P-1'")
    cache.put([sheet(0)])
    assert readers.version() == 0


def test_many_names_are_answered_in_their_order(cache: PriceCache, readers: Readers) -> None:
    names = [(f"P-{n}", "NY") for n in range(1200)]
    cache.put([sheet(n, product_id=product) for n, (product, _) in enumerate(names) if n % 3])
    found = readers.get(*reversed(names))
    assert [f and f.version for f in reversed(found)] == [n if n % 3 else None for n in range(1200)]
    assert readers.get() == []


def test_names_that_look_alike_have_slots_of_their_own(cache: PriceCache, readers: Readers) -> None:
    names = [("B:C", "A"), ("C", "A:B"), ("A", "B:C"), ("A:B", "C")]
    cache.put([sheet(n, product_id=product, location=location) for n, (product, location) in enumerate(names)])
    assert [f and f.version for f in readers.get(*names)] == [0, 1, 2, 3]


def test_every_write_and_no_refused_one_is_told(cache: PriceCache, valkey: redis.Redis) -> None:
    with valkey.pubsub(ignore_subscribe_messages=True) as feed:  # type: ignore[no-untyped-call]
        feed.subscribe(INVALIDATIONS)
        eventually(lambda: feed.get_message(timeout=0.05) is None and feed.subscribed)
        cache.put([sheet(5), sheet(6, product_id="P-2")])
        cache.put([sheet(4)])
        clear(valkey)
        told = [eventually(lambda: feed.get_message(timeout=1))["data"] for _ in range(2)]
        assert feed.get_message(timeout=0.05) is None
    assert told == [b"5 price:NY/P-1\n6 price:NY/P-2", (valkey.get(CLEARED_AT) or b"") + EVERYTHING]


def test_clearing_forgets_everything_also_what_would_be_served_stale(
    cache: PriceCache, readers: Readers, valkey: redis.Redis
) -> None:
    cache.put([sheet(1, product_id=f"P-{n}") for n in range(1100)])
    assert clear(valkey) == 1100
    assert readers.get(("P-0", "NY"), ("P-1099", "NY")) == [None, None]


def test_of_many_who_write_at_once_the_newest_stays(valkey_url: str, readers: Readers) -> None:
    start = threading.Barrier(8)
    seen: list[tuple[int, int]] = []

    def write(first: int) -> None:
        with make_redis(valkey_url, 5) as client:
            start.wait()
            for version in range(first, 400, 8):
                PriceCache(client, LIFETIMES, stored.current).put([sheet(version)])
                seen.append((version, int((client.get("price:NY/P-1") or b"-1").split()[0])))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert readers.version() in (399, None), "where they stood in each other's way the slot is left to readers"
    assert len(seen) == 400
    assert all(found >= written or found == LEASED for written, found in seen)
    with make_redis(valkey_url, 5) as client:
        PriceCache(client, LIFETIMES, stored.current).put([sheet(399)])
    assert readers.version() == 399


def test_a_late_writer_does_not_fill_a_slot_that_was_emptied_after_a_newer_ones_update(
    cache: PriceCache, readers: Readers, valkey: redis.Redis
) -> None:
    late = sheet(1)
    cache.put([sheet(2)])
    valkey.delete("price:NY/P-1")
    cache.put([late])
    assert readers.version() is None
    cache.put([sheet(2)])
    assert readers.version() == 2


def test_a_late_writer_that_takes_a_readers_lease_does_not_fill_either(cache: PriceCache, readers: Readers) -> None:
    late, newer = sheet(1), sheet(2)
    assert readers.lease("a").granted
    cache.put([late])
    readers.fill("a", slot(2))
    assert readers.version() is None, "the lease is the writer's now, and it has nothing to fill in"
    cache.put([newer])
    assert readers.version() == 2


def test_a_writer_between_anothers_look_and_its_filling_wins(valkey: redis.Redis, readers: Readers) -> None:
    newer = PriceCache(valkey, LIFETIMES, stored.current)

    def current_then_overtaken(keys: Table) -> Column:
        versions = stored.current(keys)
        newer.put([sheet(2)])
        return versions

    PriceCache(valkey, LIFETIMES, current_then_overtaken).put([sheet(1)])
    assert readers.version() == 2


def test_a_cache_that_is_away_says_so() -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    with make_redis(nowhere, 1) as client, pytest.raises(Unavailable):
        PriceCache(client, LIFETIMES, stored.current).put([SHEET])
    with pytest.raises(Unavailable):
        Readers(nowhere).get(NAME)
    with pytest.raises(Unavailable):
        Readers(nowhere).lease("a")
