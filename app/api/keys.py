"""API keys and the consumers that have them. Whoever asks for a key sees it in that answer, and nobody ever again."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Body, Query, Request, Response

from app.api.answers import answer
from app.api.deps import Deps, read
from app.api.guards import GuardedRoute, caller_of, needs
from app.api.problems import documented
from app.api.schemas import ConsumerPage, CreatedKey, KeyPage, Rotation
from app.bootstrap import ApiResources
from app.domain.api_key import ApiKey, Consumer, KeyId, NewKey, Scope
from app.domain.rules import Id
from app.services import keys

router = APIRouter(prefix="/api/v1", tags=["keys"], route_class=GuardedRoute)

_EXAMPLE = {
    "consumer_id": "shop-web",
    "consumer_name": "The web shop",
    "scopes": ["read"],
    "rate_limit": {"requests": 6000, "window_s": 60},
}
_SECRET = {"Cache-Control": "no-store"}
_After = Annotated[str, Query(max_length=100, pattern=r"^[A-Za-z0-9._:-]*$", description="Ids after this.")]
_Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post(
    "/keys",
    dependencies=[needs(Scope.ADMIN)],
    status_code=201,
    response_model=CreatedKey,
    responses=documented(400, 503),
    summary="Create a key",
)
async def create_key(wanted: Annotated[NewKey, Body(examples=[_EXAMPLE])], request: Request, deps: Deps) -> Response:
    """`key` is shown this once. Every process takes it at once."""
    by = caller_of(request)
    return _created(*await anyio.to_thread.run_sync(keys.create, deps.store, deps.key_hash, wanted, by))


@router.get(
    "/keys",
    dependencies=[needs(Scope.ADMIN)],
    response_model=KeyPage,
    responses=documented(503),
    summary="List keys",
)
async def list_keys(deps: Deps, consumer_id: Id | None = None, after: _After = "", limit: _Limit = 100) -> Response:
    """In the order of their ids, revoked and expired ones among them."""
    items = await read(deps, _page, deps, consumer_id, after, limit + 1)
    next_after = items[limit - 1].key_id if len(items) > limit else None
    return answer({"items": [item.model_dump() for item in items[:limit]], "next_after": next_after})


@router.get(
    "/keys/{key_id}",
    dependencies=[needs(Scope.ADMIN)],
    response_model=ApiKey,
    responses=documented(404, 503),
    summary="One key",
)
async def get_key(key_id: KeyId, deps: Deps) -> Response:
    """What is known of it; the key itself is not."""
    return answer(await read(deps, keys.get, deps.store, key_id))


@router.post(
    "/keys/{key_id}/rotate",
    dependencies=[needs(Scope.ADMIN)],
    status_code=201,
    response_model=CreatedKey,
    responses=documented(400, 404, 409, 503),
    summary="Rotate a key",
)
async def rotate_key(key_id: KeyId, rotation: Rotation, request: Request, deps: Deps) -> Response:
    """Another key in its place, for the same consumer, scopes and limit. The old one goes on for `overlap_s`, and then
    expires. 409 where it is revoked or has expired. A key may rotate itself, if it is an admin's."""
    made = await anyio.to_thread.run_sync(
        keys.rotate,
        deps.store,
        deps.key_hash,
        key_id,
        rotation.overlap_s,
        rotation.expires_at,
        caller_of(request),
    )
    return _created(*made)


@router.post(
    "/keys/{key_id}/revoke",
    dependencies=[needs(Scope.ADMIN)],
    response_model=ApiKey,
    responses=documented(404, 503),
    summary="Revoke a key",
)
async def revoke_key(key_id: KeyId, request: Request, deps: Deps) -> Response:
    """For good. Within two seconds no process takes it any more. Revoking it again changes nothing."""
    return answer(await anyio.to_thread.run_sync(keys.revoke, deps.store, key_id, caller_of(request)))


@router.get(
    "/consumers",
    dependencies=[needs(Scope.ADMIN)],
    response_model=ConsumerPage,
    responses=documented(503),
    summary="List consumers",
)
async def list_consumers(deps: Deps, after: _After = "", limit: _Limit = 100) -> Response:
    """Who has, or had, keys; in the order of their ids."""
    items = await read(deps, _consumers, deps, after, limit + 1)
    next_after = items[limit - 1].consumer_id if len(items) > limit else None
    return answer({"items": [item.model_dump() for item in items[:limit]], "next_after": next_after})


def _created(key: str, made: ApiKey) -> Response:
    return answer({"key": key, **made.model_dump()}, 201, {"Location": f"/api/v1/keys/{made.key_id}"} | _SECRET)


def _page(deps: ApiResources, consumer_id: str | None, after: str, limit: int) -> list[ApiKey]:
    with deps.store.transaction() as tx:
        return tx.keys.page(consumer_id, after, limit)


def _consumers(deps: ApiResources, after: str, limit: int) -> list[Consumer]:
    with deps.store.transaction() as tx:
        return tx.keys.consumers(after, limit)
