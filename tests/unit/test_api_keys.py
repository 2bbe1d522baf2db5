"""API keys: their form, what is kept of them, and who is let in."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st

from app.api import guards
from app.api.guards import GuardedRoute, anyone, needs
from app.domain.api_key import ANONYMOUS, KEY_LENGTH, Caller, KeyHash, KeyId, Scope, new_key, redacted
from app.errors import Unauthenticated, Unavailable
from app.services.callers import MOST_REFUSED, Callers, KeyRing

HASH = KeyHash("a secret of the service, long enough")
NEVER = float("inf")


def test_a_key_has_its_id_in_it_and_a_secret_that_nobody_guesses() -> None:
    made = [new_key() for _ in range(200)]
    for key, key_id in made:
        prefix, of_key, secret = key.split("_")
        assert (prefix, of_key, len(key)) == ("pk", key_id, KEY_LENGTH)
        assert re.fullmatch(r"[A-Za-z0-9]{43}", secret)  # log2(62 ** 43) = 256 bits
    assert len({key for key, _ in made}) == len({key_id for _, key_id in made}) == 200


@given(st.binary(), st.text(min_size=1), st.text(min_size=1))
def test_a_hash_is_of_the_whole_key_and_of_the_services_secret(key: bytes, secret: str, other: str) -> None:
    assert KeyHash(secret)(key) == KeyHash(secret)(key)
    assert (KeyHash(secret)(key) == KeyHash(other)(key)) == (secret == other)
    assert KeyHash(secret)(key) != KeyHash(secret)(key + b"x")
    assert len(KeyHash(secret)(key)) == 32


@given(st.text(max_size=20), st.text(max_size=20))
def test_what_came_from_outside_is_shown_without_the_secret_of_a_key_in_it(before: str, after: str) -> None:
    key, key_id = new_key()
    secret = key.rpartition("_")[2]
    for text in (before + key + after, before + key + key + after):
        assert secret not in redacted(text)
        assert f"pk_{key_id}_" in redacted(text)
    assert redacted(before) == before


class Book(dict[bytes, Caller]):
    """A dict that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def get(self, key: bytes, default: Any = None) -> Any:
        self.asked.append(key)
        return super().get(key, default)


def caller(*scopes: Scope, ends_at: float = NEVER) -> Caller:
    return Caller("k" * 12, frozenset(scopes), ends_at, None)


def test_keys_are_found_by_keyed_hashes_alone_so_that_no_time_tells_how_much_of_a_guess_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compared is a hash under a secret, which for a guess that is right in all but its last letter has
    nothing in common with the right one."""
    ring, book = KeyRing(HASH), Book()
    monkeypatch.setattr(ring, "_callers", book)
    key = new_key()[0].encode()
    near = key[:-1] + (b"a" if key[-1:] != b"a" else b"b")
    ring.learn({HASH(key): caller(Scope.READ)}, afresh=False)
    assert ring.find(key) is not None
    assert ring.find(near) is None
    assert book.asked == [HASH(key), HASH(near)]
    same = sum(a == b for a, b in zip(*book.asked, strict=True))
    assert same < 8, "two hashes agree in one byte of 256 by chance"
    assert all(len(known) == 32 and known not in key for known in book)


class Service:
    """Callers whose database has these keys; `lookups` counts how often it was asked."""

    def __init__(self, *, open_reading: bool = True) -> None:
        self.ring, self.committed, self.lookups, self.away = KeyRing(HASH), dict[bytes, Caller](), 0, False
        self.callers = Callers(self.ring, self._catch_up, open_reading=open_reading)

    async def _catch_up(self) -> None:
        self.lookups += 1
        if self.away:
            raise Unavailable("PostgreSQL is away")
        self.ring.learn(self.committed, afresh=False)

    def make(self, *scopes: Scope, ends_at: float = NEVER) -> bytes:
        key = new_key()[0].encode()
        self.committed[HASH(key)] = caller(*scopes, ends_at=ends_at)
        return key

    def identify(self, key: bytes) -> Caller:
        return asyncio.run(self.callers.identify(key))


def test_a_key_that_was_just_made_is_looked_up_once_and_then_costs_nothing() -> None:
    service = Service()
    key = service.make(Scope.READ)
    assert service.callers.at_once(key) is None
    assert service.identify(key).may(Scope.READ)
    assert service.callers.at_once(key) is service.identify(key)
    assert service.lookups == 1


def test_a_guess_is_looked_up_once_and_what_has_not_the_form_of_a_key_never() -> None:
    service = Service()
    guess = new_key()[0].encode()
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            service.identify(guess)
    assert service.lookups == 1
    for odd in (b"", b"pk_", guess[:-1], guess + b"x", b"x" * 10_000, b"\xff\x00"):
        with pytest.raises(Unauthenticated):
            service.identify(odd)
    assert service.lookups == 1


def test_what_is_remembered_of_guesses_is_bounded() -> None:
    ring = KeyRing(HASH)
    for n in range(MOST_REFUSED + 5):
        ring.refuse(b"%d" % n)
    assert not ring.refuses(b"0")
    assert ring.refuses(b"%d" % (MOST_REFUSED + 4))
    assert sum(ring.refuses(b"%d" % n) for n in range(MOST_REFUSED + 5)) == MOST_REFUSED


def test_while_nobody_can_tell_an_unknown_key_is_neither_let_in_nor_called_wrong() -> None:
    service = Service()
    known, unknown = service.make(Scope.READ), new_key()[0].encode()
    service.identify(known)
    service.away = True
    assert service.callers.at_once(known) is not None
    with pytest.raises(Unavailable):
        service.identify(unknown)


@pytest.mark.parametrize("open_reading", [True, False])
def test_open_reading_goes_on_while_nobody_can_tell_whose_key_it_is(open_reading: bool) -> None:
    callers = Service(open_reading=open_reading).callers
    nobody_can_tell, wrong = Unavailable("PostgreSQL is away"), Unauthenticated("no key")
    assert callers.reader(nobody_can_tell) is (ANONYMOUS if open_reading else nobody_can_tell)
    assert callers.reader(wrong) is wrong
    assert callers.reader(known := caller(Scope.PUBLISH)) is known


@pytest.mark.parametrize(("ends_at", "says"), [(0.0, "was revoked"), (1.0, "has expired")])
def test_a_key_that_is_no_good_any_more_is_refused_and_its_owner_told_why(ends_at: float, says: str) -> None:
    service = Service()
    key = service.make(Scope.ADMIN, ends_at=ends_at)
    with pytest.raises(Unauthenticated, match=says) as refusal:
        service.identify(key)
    assert refusal.value.key_id == "k" * 12
    assert service.callers.at_once(key) is None


@pytest.mark.parametrize("open_reading", [True, False])
def test_admin_includes_the_other_scopes_and_no_other_includes_any(open_reading: bool) -> None:
    callers = Service(open_reading=open_reading).callers
    may = {
        scope: {wanted for wanted in Scope if callers.may(caller(scope), wanted)}
        - ({Scope.READ} if open_reading else set())
        for scope in Scope
    }
    everybody = {Scope.READ} if not open_reading else set()
    assert may == {
        Scope.READ: everybody,
        Scope.PUBLISH: {Scope.PUBLISH},
        Scope.ADMIN: {Scope.PUBLISH, Scope.ADMIN} | everybody,
    }
    assert callers.may(ANONYMOUS, Scope.READ) == open_reading
    assert not callers.may(ANONYMOUS, Scope.PUBLISH)
    assert callers.at_once(None) is ANONYMOUS


@pytest.mark.parametrize(
    "declared",
    [[], [needs(Scope.READ), needs(Scope.ADMIN)], [needs(Scope.READ), anyone()]],
    ids=["nothing", "two scopes", "a scope and everybody"],
)
def test_a_route_that_does_not_say_once_who_may_use_it_cannot_be_made(declared: list[Any]) -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(ValueError, match="/forgotten: declare once"):
        router.post("/forgotten", dependencies=declared)(_endpoint)


def test_an_application_with_a_route_of_another_class_cannot_be_made() -> None:
    router = APIRouter()
    router.post("/beside")(_endpoint)
    with pytest.raises(ValueError, match="not guarded: /beside"):
        guards.check(router.routes)


@pytest.mark.parametrize(("declare", "needed"), [(lambda: needs(Scope.PUBLISH), Scope.PUBLISH), (anyone, None)])
def test_what_is_declared_is_what_is_needed(declare: Callable[[], Any], needed: Scope | None) -> None:
    router = APIRouter(route_class=GuardedRoute)
    router.post("/made", dependencies=[declare()])(_endpoint)
    guards.check(router.routes)
    (route,) = router.routes
    assert isinstance(route, GuardedRoute)
    assert route.needed is needed


async def _endpoint() -> None:
    """Any."""


def test_the_id_of_a_key_is_known_by_its_form() -> None:
    pattern = next(m.pattern for m in KeyId.__metadata__ if hasattr(m, "pattern"))
    assert re.match(pattern, new_key()[1])
    assert not re.match(pattern, new_key()[0])
