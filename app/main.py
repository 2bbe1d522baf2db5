"""The HTTP API as gunicorn serves it."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.adapters.log_level import follow
from app.api import dead_letters, events, guards, health, keys, policies, prices, problems, promotions, tasks, usage
from app.api.middleware import BodyLimitMiddleware, RequestMiddleware
from app.api.quick import QuickWay
from app.bootstrap import ApiResources, open_api_resources, open_capture
from app.observability import metrics
from app.observability.logging import log_settings
from app.observability.receipts import Receipts
from app.observability.requests import RequestLog
from app.settings import Settings

_logger = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> ASGIApp:
    """The application; when its server starts it, it says which stores do not answer."""
    settings = settings or Settings()
    resources = open_api_resources(settings)
    receipts = Receipts() if settings.telemetry == "synchronous" else None
    log = RequestLog("api", open_capture(settings, receipts), receipts.wake if receipts is not None else None)
    return RequestMiddleware(
        create_api(settings, resources, log),
        log,
        QuickWay(resources.near, resources.reader.bring),
        resources.callers,
        resources.rate_limits,
        settings.trace_sample_ratio,
        receipts,
    )


def create_api(settings: Settings, resources: ApiResources, log: RequestLog) -> FastAPI:
    """Every endpoint, and the published contract."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log_settings(settings, _logger)
        app.state.resources = resources
        metrics.present("api", revision=settings.revision)
        follow(settings)
        log.start()
        for error in await resources.start():
            _logger.warning("a store does not answer", error=str(error))
        # What is there now stays: a collection shall not look through it again and again.
        gc.collect()
        gc.freeze()
        try:
            yield
            await resources.close()
        finally:
            log.stop()

    api = FastAPI(
        title="Pricing engine",
        version="1",
        summary="What does this product cost, here, now, for this customer?",
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    modules = (prices, events, dead_letters, tasks, policies, promotions, keys, usage, health)
    routers = [module.router for module in modules]
    for router in routers:
        guards.check(router.routes)
        api.include_router(router)
    problems.install(api, [route for router in routers for route in router.routes])
    api.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, streamed={events.MANY})
    return api
