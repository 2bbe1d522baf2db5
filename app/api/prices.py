"""Prices: one quote, many quotes, history, and what if."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from app.api.answers import answer
from app.api.deps import Deps, read
from app.api.guards import GuardedRoute, needs
from app.api.problems import Problem, documented, problem_of
from app.api.schemas import (
    BatchAnswer,
    BatchRequest,
    HistoryAnswer,
    PriceRequest,
    Quantity,
    QuoteAnswer,
    SimulationRequest,
    segment,
)
from app.bootstrap import ApiResources, now_ms
from app.domain.api_key import Scope
from app.domain.rules import Id
from app.errors import NotFound, Unavailable
from app.observability import metrics
from app.services.history import price_history
from app.services.quoting import Answer, QuoteRequest, quote_each
from app.services.simulation import simulate

router = APIRouter(prefix="/api/v1", tags=["prices"], route_class=GuardedRoute)

CACHING_HEADERS = {
    "ETag": {"description": "Changes with the price.", "schema": {"type": "string"}},
    "Cache-Control": {"description": "no-cache: keep it, but ask before using it.", "schema": {"type": "string"}},
}


@router.post(
    "/price",
    dependencies=[needs(Scope.READ)],
    response_model=QuoteAnswer,
    responses=documented(400, 404, 503),
    summary="Quote a price",
)
async def quote_price(request: PriceRequest, deps: Deps) -> Response:
    """What this product costs, here, now, for this customer, with every step that made the price.

    `source` is `stale`, and `Age` says how old it is in seconds, where the stores are away and the price is the
    last one known.
    """
    found = await _quote(request.quote_request(), deps)
    return answer(found.quote, headers=_age(found))


@router.get(
    "/prices/{product_id}",
    dependencies=[needs(Scope.READ)],
    response_model=QuoteAnswer,
    responses=documented(404, 503)
    | {
        200: {"headers": CACHING_HEADERS},
        304: {"description": "The price is still the one that If-None-Match names.", "headers": CACHING_HEADERS},
    },
    summary="Quote a price, cacheably",
)
async def get_price(
    product_id: Id,
    location: Annotated[Id, Query(description="A store or a region.")],
    deps: Deps,
    is_prime_member: bool = False,
    quantity: Annotated[Quantity, Query()] = 1,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The same answer as POST /price, with an ETag. Clients may keep it, and must ask before they use it."""
    found = await _quote(QuoteRequest(product_id, location, segment(is_prime_member), quantity), deps)
    quote = found.quote
    computed_at = bytes(quote.computed_at).decode().strip('"')
    etag = f'W/"{quote.version}-{computed_at}-{quote.segment}-{quantity}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"} | _age(found)
    known = [tag.strip() for tag in (if_none_match or "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return answer(quote, headers=headers)


@router.post(
    "/prices/batch",
    dependencies=[needs(Scope.READ)],
    response_model=BatchAnswer,
    responses=documented(400, 503),
    summary="Quote many prices",
)
async def quote_batch(request: BatchRequest, deps: Deps) -> Response:
    """Up to 1,000 quotes in one round trip. An unknown product is a problem of its item alone, and so is one that
    cannot be read while a store is away, as long as any can; an item that is not valid refuses the request, with its
    place."""
    requests = [item.quote_request() for item in request.items]
    answers = await quote_each(requests, deps.reader, now_ms)
    _count(answers)
    away = [item for item in answers if isinstance(item, Unavailable)]
    if len(away) == len(answers):
        raise away[0]
    refused = problem_of(away[0]) if away else None  # once, for it is logged
    return answer({"items": [_batch_item(item, refused) for item in answers]})


@router.get(
    "/prices/{product_id}/history",
    dependencies=[needs(Scope.READ)],
    response_model=HistoryAnswer,
    responses=documented(404, 503),
    summary="Every version of a price",
)
async def get_history(
    product_id: Id,
    location: Annotated[Id, Query(description="A store or a region.")],
    deps: Deps,
    before: Annotated[
        date | None,
        Query(
            ge=date(1970, 1, 1),
            le=date(9998, 12, 31),
            description="Lowest price of the 30 days before this; today, where it is left out.",
        ),
    ] = None,
    before_version: Annotated[int | None, Query(ge=1, le=2**62, description="Only older versions.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """What it cost, from when to when, and why."""
    return answer(
        await read(deps, price_history, deps.store, (product_id, location), before, before_version, limit, now_ms())
    )


@router.post(
    "/prices/simulate",
    dependencies=[needs(Scope.READ)],
    response_model=QuoteAnswer,
    responses=documented(400, 404, 503),
    summary="Quote under other terms",
)
async def simulate_price(request: SimulationRequest, deps: Deps) -> Response:
    """What it would cost with other signals, rules or at another time. Nothing is stored."""
    amounts = {
        field: value
        for field in ("list_price", "cost", "competitor_price")
        if (value := getattr(request, field)) is not None
    }
    others = {}
    if request.demand_index is not None:
        others["demand_bp"] = round(request.demand_index * 10_000)
    if request.stock is not None:
        others["stock"] = request.stock
    quote = await read(
        deps,
        simulate,
        deps.store,
        request.quote_request(),
        _ms(request.as_of),
        amounts,
        others,
        request.policies,
        request.promotions,
    )
    return answer(quote)


async def _quote(request: QuoteRequest, deps: ApiResources) -> Answer:
    answers = await quote_each([request], deps.reader, now_ms)
    _count(answers)
    if isinstance(answers[0], NotFound | Unavailable):
        raise answers[0]
    return answers[0]


def _age(found: Answer) -> dict[str, str]:
    return {"Age": str(found.age_ms // 1000)} if found.quote.source == "stale" else {}


def _count(answers: Iterable[Answer | NotFound | Unavailable]) -> None:
    for item in answers:
        metrics.quotes.labels(_source(item)).inc()


def _source(item: Answer | NotFound | Unavailable) -> str:
    if isinstance(item, Answer):
        return "near_cache" if item.at_hand else item.quote.source
    return "unknown" if isinstance(item, NotFound) else "unavailable"


def _batch_item(item: Answer | NotFound | Unavailable, refused: Problem | None = None) -> dict[str, Any]:
    """`refused` is the problem of all that is unavailable."""
    if isinstance(item, Answer):
        return {"status": 200, "quote": item.quote, "problem": None}
    problem = refused if refused and isinstance(item, Unavailable) else problem_of(item)
    return {"status": problem.status, "quote": None, "problem": problem.model_dump()}


def _ms(instant: datetime | None) -> int:
    return now_ms() if instant is None else int(instant.timestamp() * 1000)
