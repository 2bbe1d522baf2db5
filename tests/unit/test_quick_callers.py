"""Whoever calls, with whatever key: the quick way lets in, refuses and limits exactly whom the endpoint does."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.rate_limits import RateLimits
from app.api import problems
from app.api.guards import GuardedRoute, needs
from app.api.middleware import RequestMiddleware
from app.api.quick import JSON, QuickWay
from app.domain.api_key import Caller, KeyHash, RateLimit, Scope, new_key
from app.domain.token_bucket import Draw, TokenBucket
from app.observability.requests import RequestLog
from app.services.callers import Callers, KeyRing
from app.services.near_cache import NearCache
from app.services.slots import Name
from tests.unit.test_quick import (
    LOCATION,
    PRICE,
    PRODUCT,
    REQUIRED,
    bring_nothing,
    endpoints_answer,
    near_cache,
    written,
)

HASH = KeyHash("a secret of the service, long enough")
BODY = written(REQUIRED)
NEVER, PAST, REVOKED = float("inf"), 1.0, 0.0
LIMIT = RateLimit(requests=5, window_s=60)

scopes = st.sets(st.sampled_from(Scope)).map(frozenset)
keys = st.lists(
    st.builds(
        lambda scopes, ends_at, limit: Caller("k" * 12, scopes, ends_at, limit),
        scopes,
        st.sampled_from([NEVER, NEVER, NEVER, PAST, REVOKED]),
        st.sampled_from([None, None, LIMIT]),
    ),
    min_size=1,
    max_size=4,
)
odd_keys = st.sampled_from([None, b"", b"nonsense", b"pk_" + b"a" * 56, b"\xff"])

router = APIRouter(route_class=GuardedRoute)


@router.post(PRICE, dependencies=[needs(Scope.READ)])
async def price(request: Request) -> Response:
    answer = endpoints_answer(await request.body())
    assert answer is not None
    return Response(answer, media_type="application/json")


Bring = Callable[[Sequence[Name]], Awaitable[Collection[Name]]]


class Way:
    """One process: `quick`, or with the endpoint alone. Its clock stands still."""

    def __init__(
        self, callers: Callers, *, quick: bool, bring: Bring = bring_nothing, near: NearCache | None = None
    ) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        limits = RateLimits(self._draw, 1, lambda: 0)
        api = FastAPI()
        api.include_router(router)
        problems.install(api, router.routes)
        api.state.resources = SimpleNamespace(callers=callers, rate_limits=limits)
        way = QuickWay(near or near_cache(), bring)
        if not quick:
            way.paths = frozenset()
        self.middleware = RequestMiddleware(api, RequestLog("api"), way, callers, limits, 0)
        self._quick = quick

    async def _draw(self, key_id: str, limit: RateLimit, wanted: int) -> Draw:
        return self._buckets.setdefault(key_id, TokenBucket(limit, 1, 0)).draw(wanted, 0)

    async def ask(self, key: bytes | None) -> tuple[int, Any, dict[str, str]]:
        """Status, what it says, and the headers that are about who asks."""
        shown = [] if key is None else [(b"x-api-key", key)]
        answer = self.middleware.at_once(PRICE.encode(), [JSON, *shown], BODY, None) if self._quick else None
        if answer is not None:
            head, body = answer
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if line)
            status = 200
        else:
            status, body, headers = await self._by_asgi([JSON, *shown])
        said = json.loads(body)
        said.pop("trace_id", None)
        return (
            status,
            said,
            {name: headers[name] for name in headers if name in ("ratelimit-policy", "www-authenticate")},
        )

    async def _by_asgi(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes, dict[str, str]]:
        """As uvicorn asks where the body came whole."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "root_path": "",
            "path": PRICE,
            "raw_path": PRICE.encode(),
            "query_string": b"",
            "headers": headers,
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": BODY, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.middleware(scope, receive, send)
        start, *parts = sent
        said = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], b"".join(part["body"] for part in parts), said


@settings(max_examples=150)
@given(keys, st.lists(st.integers(0, 3) | odd_keys, max_size=25), st.booleans())
def test_the_quick_way_lets_in_whom_the_endpoint_lets_in(
    made: list[Caller], asked: list[Any], open_reading: bool
) -> None:
    shown = [new_key()[0].encode() for _ in made]
    ring = KeyRing(HASH)
    ring.learn(
        {
            HASH(key): Caller(key[3:15].decode(), caller.scopes, caller.ends_at, caller.rate_limit)
            for key, caller in zip(shown, made, strict=True)
        },
        afresh=True,
    )

    async def nothing_new() -> None:
        pass

    async def play() -> None:
        callers = Callers(ring, nothing_new, open_reading=open_reading)
        quick, endpoint = Way(callers, quick=True), Way(callers, quick=False)
        for who in asked:
            key = shown[who % len(shown)] if isinstance(who, int) else who
            assert await quick.ask(key) == await endpoint.ask(key)

    asyncio.run(play())


@pytest.mark.parametrize(("limit", "brought"), [(None, [[(PRODUCT, LOCATION)]]), (LIMIT, [])])
def test_nothing_is_brought_for_a_key_with_a_limit_before_its_token_is_taken(
    limit: RateLimit | None, brought: list[list[Name]]
) -> None:
    key = new_key()[0].encode()
    ring = KeyRing(HASH)
    ring.learn({HASH(key): Caller("k" * 12, frozenset({Scope.READ}), NEVER, limit)}, afresh=True)
    asked: list[list[Name]] = []

    async def bring(names: Sequence[Name]) -> Collection[Name]:
        asked.append(list(names))
        return ()

    async def nothing_new() -> None:
        raise AssertionError("it is known")

    nothing_at_hand = near_cache(fresh_for_ms=0)
    way = Way(Callers(ring, nothing_new, open_reading=False), quick=True, bring=bring, near=nothing_at_hand)
    status, _, _ = asyncio.run(way.ask(key))
    assert (status, asked) == (200, brought)


def test_a_key_that_is_known_and_may_read_is_answered_at_once() -> None:
    key = new_key()[0].encode()
    ring = KeyRing(HASH)
    ring.learn({HASH(key): Caller("k" * 12, frozenset({Scope.READ}), NEVER, None)}, afresh=True)

    async def nothing_new() -> None:
        raise AssertionError("it is known")

    for open_reading in (True, False):
        way = Way(Callers(ring, nothing_new, open_reading=open_reading), quick=True)
        answer = way.middleware.at_once(PRICE.encode(), [JSON, (b"x-api-key", key)], BODY, None)
        assert answer is not None
        nobody = way.middleware.at_once(PRICE.encode(), [JSON], BODY, None)
        assert (nobody is not None) == open_reading
