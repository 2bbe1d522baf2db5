"""For whoever runs the service: is it alive, can it work, what did it count."""

import asyncio
from collections.abc import Awaitable

import anyio.to_thread
import structlog
from fastapi import APIRouter, Response

from app import stopping
from app.api.answers import answer
from app.api.deps import Deps
from app.api.guards import GuardedRoute, anyone
from app.api.schemas import Health, Readiness
from app.errors import Unavailable
from app.observability.exposition import CONTENT_TYPE, asked_for

_logger = structlog.get_logger(__name__)

router = APIRouter(tags=["operation"], route_class=GuardedRoute)

PATIENCE_S = 2.0
"""A store that takes longer to say that it is there is not ready: whoever asks does not wait for ever."""


@router.get("/healthz", dependencies=[anyone()], response_model=Health, summary="The process lives")
async def healthz() -> Response:
    """Answers without asking anybody else: whoever gets no answer should restart the process."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    dependencies=[anyone()],
    response_model=Readiness,
    responses={503: {"description": "It has no prices to answer with, or is being stopped.", "model": Readiness}},
    summary="It can answer",
)
async def readyz(deps: Deps) -> Response:
    """PostgreSQL and both roles of Redis, asked now, unless the server is being stopped. While one of them is away but
    known prices are still served, that is `degraded`, and 200: sending requests elsewhere would not help. Whoever gets
    a 503 should do so."""
    if stopping.everything_stops():
        return answer({"status": "leaving", "checks": {}}, 503, {"Retry-After": "1"})
    names = ("database", "cache", "broker")
    pings = (
        anyio.to_thread.run_sync(deps.store.ping, abandon_on_cancel=True),
        deps.cache.ping(),
        deps.publisher.ping(),
    )
    results = await asyncio.gather(*(_check(ping) for ping in pings))
    checks = dict(zip(names, results, strict=True))
    if all(result == "ok" for result in results):
        status = "ready"
    elif "ok" in (checks["database"], checks["cache"]) or len(deps.near):
        status = "degraded"
    else:
        status = "not_ready"
    body = {"status": status, "checks": checks}
    return answer(body, 503, {"Retry-After": "1"}) if status == "not_ready" else answer(body)


async def _check(ping: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ping
    except Unavailable as error:
        _logger.warning("a store does not answer", error=str(error))
        return "does not answer"
    except TimeoutError:
        return f"no answer within {PATIENCE_S:g} s"
    return "ok"


@router.get(
    "/metrics",
    dependencies=[anyone()],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def get_metrics() -> Response:
    """Of every process of this service on this machine, in Prometheus' text format."""
    return Response(await asked_for(), headers={"Content-Type": CONTENT_TYPE})
