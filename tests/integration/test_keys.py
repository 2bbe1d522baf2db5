"""API keys in a real PostgreSQL: made, rotated, revoked, and known to processes in time, however their connections
fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from app.adapters.database import make_engine
from app.adapters.key_feed import KeyFeed
from app.adapters.store import Store
from app.domain.api_key import Caller, KeyHash, NewKey, RateLimit, Scope
from app.errors import Conflict, InvalidInput, NotFound, Unauthenticated, Unavailable
from app.services import keys
from app.services.callers import Callers, KeyRing
from tests.support.proxy import Proxy, proxy_to
from tests.support.waiting import soon

HASH = KeyHash("a secret of the service, long enough")
HONOURED_S = 2.0
"""How soon every process knows of a revocation."""

BY = "a test"
T = TypeVar("T")


@pytest.fixture
def empty(database_url: str) -> Iterator[Store]:
    store = Store(make_engine(database_url))
    yield store
    store.close()


def new(store: Store, *scopes: Scope, consumer: str = "shop", **more: Any) -> tuple[str, str]:
    key, made = keys.create(store, HASH, NewKey(consumer_id=consumer, scopes=list(scopes), **more), BY)
    return key, made.key_id


class Process:
    """What an API process has of keys."""

    def __init__(self, url: str) -> None:
        ring = KeyRing(HASH)
        self.feed = KeyFeed(url, HASH.mark, ring)
        self.callers = Callers(ring, self.feed.catch_up, open_reading=True)

    def takes(self, key: str) -> bool:
        return self.callers.at_once(key.encode()) is not None

    async def identify(self, key: str) -> Caller | type[Exception]:
        try:
            return await self.callers.identify(key.encode())
        except (Unauthenticated, Unavailable) as error:
            return type(error)


@asynccontextmanager
async def processes(*urls: str) -> Any:
    started = [Process(url) for url in urls]
    for process in started:
        process.feed.start()
    try:
        yield started
    finally:
        for process in started:
            await process.feed.stop()


def in_loop(play: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await play()

    return asyncio.run(limited())


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    folder = parse_qs(urlsplit(database_url).query)["host"][0]
    with proxy_to(Path(folder) / ".s.PGSQL.5432") as proxy:
        yield proxy


def through(proxy: Proxy, database_url: str) -> str:
    name = urlsplit(database_url).path
    return f"postgresql://postgres@127.0.0.1:{proxy.port}{name}?sslmode=disable&gssencmode=disable"


def test_a_key_is_kept_as_a_hash_and_nothing_else_of_it(empty: Store, database_url: str) -> None:
    key, key_id = new(empty, Scope.PUBLISH, Scope.READ, rate_limit=RateLimit(requests=5, window_s=1))
    assert keys.get(empty, key_id).model_dump(exclude={"created_at"}) == {
        "key_id": key_id, "consumer_id": "shop", "scopes": ["read", "publish"],
        "rate_limit": {"requests": 5, "window_s": 1}, "expires_at": None, "revoked_at": None, "rotated_from": None,
    }  # fmt: skip
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT * FROM api_keys, consumers, key_changes").fetchall()
    secret = key.rpartition("_")[2]
    assert not [
        value
        for row in rows
        for value in row
        if secret.encode() in (value if isinstance(value, bytes) else str(value).encode())
    ]
    assert HASH(key.encode()) in rows[0]


def test_the_first_start_makes_one_admin_key_also_where_several_start_at_once(empty: Store) -> None:
    async def start_several() -> list[str | None]:
        return await asyncio.gather(*(asyncio.to_thread(keys.first_key, empty, HASH) for _ in range(4)))

    made = [key for key in in_loop(start_several) if key]
    assert len(made) == 1
    assert keys.first_key(empty, HASH) is None
    other = KeyHash("another secret, of a service elsewhere")
    assert keys.first_key(empty, other) is not None, "no key that was hashed with another secret works"
    assert keys.first_key(empty, HASH) is None


def test_an_admin_key_that_is_of_no_use_any_more_counts_for_none(empty: Store) -> None:
    first = keys.first_key(empty, HASH)
    assert first is not None
    keys.revoke(empty, first.split("_")[1], BY)
    assert keys.first_key(empty, HASH) is not None


def test_a_key_is_rotated_into_one_for_the_same_and_goes_on_for_a_while(empty: Store) -> None:
    limit = RateLimit(requests=7, window_s=60)
    _, key_id = new(empty, Scope.READ, rate_limit=limit, expires_at=datetime.now(UTC) + timedelta(days=30))
    before = datetime.now(UTC)
    key, made = keys.rotate(empty, HASH, key_id, 3600, None, BY)
    old = keys.get(empty, key_id)
    assert old.expires_at is not None
    assert abs(old.expires_at - before - timedelta(hours=1)) < timedelta(minutes=1)
    assert (made.consumer_id, made.scopes, made.rate_limit, made.rotated_from) == ("shop", [Scope.READ], limit, key_id)
    assert made.expires_at is not None
    assert abs(made.expires_at - before - timedelta(days=30)) < timedelta(minutes=1)
    assert key.split("_")[1] == made.key_id
    keys.rotate(empty, HASH, key_id, 86_400, None, BY)
    assert keys.get(empty, key_id).expires_at == old.expires_at, "a second rotation makes it live no longer"


def test_what_is_of_no_use_any_more_is_not_rotated_and_what_is_unknown_not_found(empty: Store) -> None:
    _, key_id = new(empty, Scope.READ)
    first = keys.revoke(empty, key_id, BY)
    assert keys.revoke(empty, key_id, BY).revoked_at == first.revoked_at
    with pytest.raises(Conflict):
        keys.rotate(empty, HASH, key_id, 0, None, BY)
    for change in (lambda: keys.revoke(empty, "x" * 12, BY), lambda: keys.rotate(empty, HASH, "x" * 12, 0, None, BY)):
        with pytest.raises(NotFound):
            change()
    with pytest.raises(InvalidInput, match="expires_at"):
        new(empty, Scope.READ, expires_at=datetime.now(UTC) - timedelta(seconds=1))


def test_consumers_are_listed_with_how_many_keys_they_have(empty: Store) -> None:
    new(empty, Scope.READ, consumer="b", consumer_name="The B")
    _, gone = new(empty, Scope.READ, consumer="a")
    new(empty, Scope.READ, consumer="a")
    new(empty, Scope.READ, consumer="b")
    keys.revoke(empty, gone, BY)
    with empty.transaction() as tx:
        listed = [(c.consumer_id, c.name, c.keys) for c in tx.keys.consumers("", 10)]
        assert tx.keys.consumers("a", 10)[0].consumer_id == "b"
    assert listed == [("a", "a", 1), ("b", "The B", 2)]
    assert len(list(keys.every_key(empty, "a"))) == 2
    assert len(list(keys.every_key(empty, None))) == 4


def test_a_key_that_was_just_made_works_at_once_in_every_process(empty: Store, database_url: str) -> None:
    async def play() -> None:
        async with processes(*[database_url] * 3) as started:
            for _ in range(5):
                key, _ = await asyncio.to_thread(new, empty, Scope.READ)
                found = await asyncio.gather(*(process.identify(key) for process in started))
                assert all(isinstance(caller, Caller) for caller in found)
                assert all(process.takes(key) for process in started)

    in_loop(play)


def test_a_revocation_is_honoured_by_every_process_in_time(empty: Store, database_url: str) -> None:
    async def play() -> None:
        async with processes(*[database_url] * 3) as started:
            for _ in range(3):
                key, key_id = await asyncio.to_thread(new, empty, Scope.READ)
                for process in started:
                    await process.identify(key)
                await asyncio.to_thread(keys.revoke, empty, key_id, BY)
                await soon(lambda: not any(process.takes(key) for process in started), HONOURED_S)  # noqa: B023
                assert {await process.identify(key) for process in started} == {Unauthenticated}

    in_loop(play)


@pytest.mark.parametrize("how", ["freeze", "cut"])
def test_a_revocation_is_honoured_in_time_over_a_connection_that_breaks(
    empty: Store, database_url: str, proxy: Proxy, how: str
) -> None:
    """Frozen and healed: connections that were there stay mute for ever, new ones work."""

    async def play() -> None:
        async with processes(through(proxy, database_url)) as (process,):
            key, key_id = await asyncio.to_thread(new, empty, Scope.READ)
            await process.identify(key)
            getattr(proxy, how)()
            proxy.heal()
            await asyncio.to_thread(keys.revoke, empty, key_id, BY)
            await soon(lambda: not process.takes(key), HONOURED_S)

    in_loop(play)


@pytest.mark.parametrize("how", ["freeze", "cut"])
def test_without_postgresql_known_keys_go_on_and_unknown_ones_are_told_to_come_again(
    empty: Store, database_url: str, proxy: Proxy, how: str
) -> None:
    async def play() -> None:
        async with processes(through(proxy, database_url)) as (process,):
            known, known_id = await asyncio.to_thread(new, empty, Scope.READ)
            await process.identify(known)
            getattr(proxy, how)()
            other, _ = await asyncio.to_thread(new, empty, Scope.READ)
            began = time.monotonic()
            assert await process.identify(other) is Unavailable
            assert time.monotonic() - began < HONOURED_S
            await asyncio.to_thread(keys.revoke, empty, known_id, BY)
            assert process.takes(known)
            proxy.heal()
            await soon(lambda: not process.takes(known), HONOURED_S)
            assert isinstance(await process.identify(other), Caller)

    in_loop(play)


def test_whoever_guesses_keys_makes_postgresql_work_no_harder(empty: Store, database_url: str) -> None:
    """A thousand guesses, a hundred at a time: they share the looks."""

    async def play() -> int:
        looks = 0
        async with processes(database_url) as (process,):
            look = process.feed._look

            async def counted() -> None:
                nonlocal looks
                looks += 1
                await look()

            process.feed._look = counted
            for n in range(10):
                guesses = [f"pk_{n:012}_{m:043}" for m in range(100)]
                found = await asyncio.gather(*(process.identify(guess) for guess in guesses))
                assert set(found) == {Unauthenticated}
            return looks

    assert in_loop(play) <= 30


def test_what_a_restored_database_does_not_have_is_forgotten(empty: Store, database_url: str) -> None:
    async def play() -> None:
        async with processes(database_url) as (process,):
            key, _ = await asyncio.to_thread(new, empty, Scope.READ)
            kept, _ = await asyncio.to_thread(new, empty, Scope.READ)
            await process.identify(key)
            with psycopg.connect(database_url) as connection:
                connection.execute("DELETE FROM api_keys WHERE hash = %s", [HASH(key.encode())])
                connection.execute("CREATE TABLE restored (LIKE key_changes INCLUDING ALL)")
                connection.execute("INSERT INTO restored SELECT * FROM key_changes")
                connection.execute("DROP TABLE key_changes")
                connection.execute("ALTER TABLE restored RENAME TO key_changes")
            await soon(lambda: not process.takes(key), HONOURED_S)
            assert process.takes(kept)

    in_loop(play)


def test_an_expired_key_is_refused_without_anybody_being_asked(empty: Store, database_url: str) -> None:
    async def play() -> None:
        async with processes(database_url) as (process,):
            ends = datetime.now(UTC) + timedelta(seconds=1)
            key, _ = await asyncio.to_thread(new, empty, Scope.READ, expires_at=ends)
            await process.identify(key)
            assert process.takes(key)
            await process.feed.stop()
            await soon(lambda: not process.takes(key), 3)

    in_loop(play)
