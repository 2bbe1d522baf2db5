"""What the service is compared with, under the same server, worker class and number of workers.

`ceiling` is the least that any application can do. `ordinary` and `cashews` are what a careful team writes first:
a FastAPI route with models for request and response, and prices as JSON in the same Valkey, read with redis-py
or through a caching library. Neither traces, counts or logs its requests; the service does all three.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import redis.asyncio
from cashews import Cache
from fastapi import FastAPI, HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.schemas import PriceRequest, QuoteAnswer

KEY = "bench:{0.product_id}:{0.user_location}:{0.is_prime_member:d}:{0.quantity}"
"""Where the peers find a finished answer to a request."""

Load = Callable[[PriceRequest], Awaitable[QuoteAnswer]]


def ceiling() -> ASGIApp:
    """A constant of an answer's size, whatever is asked."""
    body = constant()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def constant() -> bytes:
    return b'{"answer":"%b"}' % (b"x" * (int(os.environ["BENCH_ANSWER_BYTES"]) - 13))


def ordinary() -> FastAPI:
    """A price from Valkey, each time."""
    client = redis.asyncio.Redis.from_url(os.environ["PRICING_CACHE_URL"])

    async def load(request: PriceRequest) -> QuoteAnswer:
        content = await client.get(KEY.format(request))
        if content is None:
            raise HTTPException(404, "no such price")
        return QuoteAnswer.model_validate_json(content)

    return _api(load, client.aclose)


def cashews() -> FastAPI:
    """The same load behind `cashews`' decorator, which keeps its results in the same Valkey."""
    url = os.environ["PRICING_CACHE_URL"]
    client = redis.asyncio.Redis.from_url(url)
    cache = Cache()
    cache.setup(url)

    @cache(ttl="1h", key="cashews:{product_id}:{location}:{member}:{quantity}")
    async def quote(product_id: str, location: str, member: bool, quantity: int) -> QuoteAnswer:
        asked = PriceRequest(product_id=product_id, user_location=location, is_prime_member=member, quantity=quantity)
        content = await client.get(KEY.format(asked))
        if content is None:
            raise HTTPException(404, "no such price")
        return QuoteAnswer.model_validate_json(content)

    async def load(request: PriceRequest) -> QuoteAnswer:
        return await quote(request.product_id, request.user_location, request.is_prime_member, request.quantity)

    async def close() -> None:
        await cache.close()
        await client.aclose()

    return _api(load, close)


def _api(load: Load, close: Callable[[], Awaitable[None]]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await close()

    api = FastAPI(lifespan=lifespan)

    @api.post("/api/v1/price")
    async def price(request: PriceRequest) -> QuoteAnswer:
        return await load(request)

    return api
