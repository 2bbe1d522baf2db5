"""Policies: how a scope of products is priced. Every change is an event."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from app.api.answers import answer
from app.api.deps import Deps, read
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import PolicyPage
from app.bootstrap import ApiResources
from app.domain.api_key import Scope
from app.domain.rules import Id, Policy
from app.errors import InvalidInput
from app.services.rule_changes import remove_policy, save_policy

router = APIRouter(prefix="/api/v1/policies", tags=["policies"], route_class=GuardedRoute)

EXAMPLE = {
    "policy_id": "coffee",
    "name": "Coffee",
    "category": "Coffee",
    "currency": "USD",
    "kind": "cost_plus",
    "rate_percent": 40,
    "min_margin_percent": 20,
    "rounding_increment": 1.00,
    "rounding_ending": 0.99,
    "tiers": [{"min_quantity": 10, "percent": 5}],
}

PolicyBody = Annotated[Policy, Body(examples=[EXAMPLE])]


@router.get(
    "", dependencies=[needs(Scope.READ)], response_model=PolicyPage, responses=documented(503), summary="List policies"
)
async def list_policies(
    deps: Deps,
    after: Annotated[str, Query(max_length=100, pattern=r"^[A-Za-z0-9._:-]*$", description="Ids after this.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """In order of their ids."""
    items = await read(deps, _page, deps, after, limit)
    more = len(items) > limit
    page = {
        "items": [item.model_dump() for item in items[:limit]],
        "next_after": items[limit - 1].policy_id if more else None,
    }
    return answer(page)


@router.post(
    "",
    dependencies=[needs(Scope.ADMIN)],
    status_code=201,
    response_model=Policy,
    responses=documented(400, 409, 503),
    summary="Create a policy",
)
async def create_policy(policy: PolicyBody, deps: Deps) -> Response:
    """Prices follow in the background, within moments."""
    created = await save_policy(policy, new=True, changes=deps.rule_changes)
    return answer(created, 201, {"Location": f"/api/v1/policies/{created.policy_id}"})


@router.get(
    "/{policy_id}",
    dependencies=[needs(Scope.READ)],
    response_model=Policy,
    responses=documented(404, 503),
    summary="One policy",
)
async def get_policy(policy_id: Id, deps: Deps) -> Response:
    """As it is stored now."""
    return answer(await read(deps, _get, deps, policy_id))


@router.put(
    "/{policy_id}",
    dependencies=[needs(Scope.ADMIN)],
    response_model=Policy,
    responses=documented(400, 409, 503),
    summary="Create or replace",
)
async def put_policy(policy_id: Id, policy: PolicyBody, deps: Deps) -> Response:
    """The body's `policy_id` is the one in the path."""
    if policy.policy_id != policy_id:
        raise InvalidInput(f"is {policy.policy_id!r}, but the URL says {policy_id!r}", "policy_id")
    return answer(await save_policy(policy, new=False, changes=deps.rule_changes))


@router.delete(
    "/{policy_id}",
    dependencies=[needs(Scope.ADMIN)],
    status_code=204,
    responses=documented(404, 409, 503),
    summary="Remove a policy",
)
async def delete_policy(policy_id: Id, deps: Deps) -> Response:
    """Prices follow in the background, within moments."""
    await remove_policy(policy_id, changes=deps.rule_changes)
    return Response(status_code=204)


def _get(deps: ApiResources, policy_id: str) -> Policy:
    with deps.store.reading() as tx:
        return tx.rules.policy(policy_id)


def _page(deps: ApiResources, after: str, limit: int) -> list[Policy]:
    with deps.store.reading() as tx:
        return tx.rules.policies_after(after, limit + 1)
