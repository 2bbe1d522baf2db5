"""What endpoints are given."""

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar, TypeVarTuple

import anyio.to_thread
from fastapi import Depends, Request

from app.bootstrap import ApiResources
from app.errors import Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def resources(request: Request) -> ApiResources:
    """A coroutine, though it waits for nothing: FastAPI calls any other in a thread."""
    found: ApiResources = request.app.state.resources
    return found


Deps = Annotated[ApiResources, Depends(resources)]


async def read(deps: ApiResources, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """What only PostgreSQL knows. Raises `Unavailable` after one store timeout, whatever the thread waits for: a
    connection, an answer, a new connection; it ends by itself later."""
    try:
        async with asyncio.timeout(deps.settings.store_timeout_s):
            return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=True)
    except TimeoutError:
        raise Unavailable("PostgreSQL did not answer in time") from None
