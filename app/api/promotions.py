"""Promotions: discounts with a scope, a window and an audience. Every change is an event."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from app.api.answers import answer
from app.api.deps import Deps, read
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import PromotionPage
from app.bootstrap import ApiResources
from app.domain.api_key import Scope
from app.domain.rules import Id, Promotion
from app.errors import InvalidInput
from app.services.rule_changes import remove_promotion, save_promotion

router = APIRouter(prefix="/api/v1/promotions", tags=["promotions"], route_class=GuardedRoute)

EXAMPLE = {
    "promotion_id": "coffee-week",
    "name": "Coffee week",
    "category": "Coffee",
    "kind": "percent",
    "value": 15,
    "segment": "member",
    "starts_at": "2026-12-01T00:00:00-05:00",
    "ends_at": "2026-12-08T00:00:00-05:00",
}

PromotionBody = Annotated[Promotion, Body(examples=[EXAMPLE])]


@router.get(
    "",
    dependencies=[needs(Scope.READ)],
    response_model=PromotionPage,
    responses=documented(503),
    summary="List promotions",
)
async def list_promotions(
    deps: Deps,
    after: Annotated[str, Query(max_length=100, pattern=r"^[A-Za-z0-9._:-]*$", description="Ids after this.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """In order of their ids."""
    items = await read(deps, _page, deps, after, limit)
    more = len(items) > limit
    page = {
        "items": [item.model_dump() for item in items[:limit]],
        "next_after": items[limit - 1].promotion_id if more else None,
    }
    return answer(page)


@router.post(
    "",
    dependencies=[needs(Scope.ADMIN)],
    status_code=201,
    response_model=Promotion,
    responses=documented(400, 409, 503),
    summary="Create a promotion",
)
async def create_promotion(promotion: PromotionBody, deps: Deps) -> Response:
    """Prices follow in the background, within moments."""
    created = await save_promotion(promotion, new=True, changes=deps.rule_changes)
    return answer(created, 201, {"Location": f"/api/v1/promotions/{created.promotion_id}"})


@router.get(
    "/{promotion_id}",
    dependencies=[needs(Scope.READ)],
    response_model=Promotion,
    responses=documented(404, 503),
    summary="One promotion",
)
async def get_promotion(promotion_id: Id, deps: Deps) -> Response:
    """As it is stored now."""
    return answer(await read(deps, _get, deps, promotion_id))


@router.put(
    "/{promotion_id}",
    dependencies=[needs(Scope.ADMIN)],
    response_model=Promotion,
    responses=documented(400, 409, 503),
    summary="Create or replace",
)
async def put_promotion(promotion_id: Id, promotion: PromotionBody, deps: Deps) -> Response:
    """The body's `promotion_id` is the one in the path."""
    if promotion.promotion_id != promotion_id:
        raise InvalidInput(f"is {promotion.promotion_id!r}, but the URL says {promotion_id!r}", "promotion_id")
    return answer(await save_promotion(promotion, new=False, changes=deps.rule_changes))


@router.delete(
    "/{promotion_id}",
    dependencies=[needs(Scope.ADMIN)],
    status_code=204,
    responses=documented(404, 409, 503),
    summary="Remove a promotion",
)
async def delete_promotion(promotion_id: Id, deps: Deps) -> Response:
    """Prices follow in the background, within moments."""
    await remove_promotion(promotion_id, changes=deps.rule_changes)
    return Response(status_code=204)


def _get(deps: ApiResources, promotion_id: str) -> Promotion:
    with deps.store.reading() as tx:
        return tx.rules.promotion(promotion_id)


def _page(deps: ApiResources, after: str, limit: int) -> list[Promotion]:
    with deps.store.reading() as tx:
        return tx.rules.promotions_after(after, limit + 1)
