"""The HTTP API as gunicorn serves it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from app.api import events, health, policies, prices, problems, promotions, tasks
from app.api.middleware import BodyLimitMiddleware, RequestMiddleware
from app.bootstrap import open_resources
from app.observability.logging import log_settings
from app.settings import Settings

_logger = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; it opens its stores, and checks that they answer, when its server starts it."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log_settings(settings, _logger)
        app.state.resources = resources = open_resources(settings)
        resources.verify()
        yield
        await resources.close()

    app = FastAPI(
        title="Pricing engine",
        version="1",
        summary="What does this product cost, here, now, for this customer?",
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    routers = [module.router for module in (prices, events, tasks, policies, promotions, health)]
    for router in routers:
        app.include_router(router)
    problems.install(app, [route for router in routers for route in router.routes])
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestMiddleware)
    return app
