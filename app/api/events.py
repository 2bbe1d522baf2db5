"""Events in: accepted once they are in the stream, applied in the background."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Body, Header, Request, Response

from app.adapters.event_publishing import MAX_EVENTS, Encoded
from app.api.answers import answer
from app.api.bodies import JSON, NDJSON
from app.api.deps import Deps
from app.api.event_batches import UPLOAD_S, encoded, event_id_from, read_batch
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import EventStatus, MarketEvent, PublishedAnswer, PublishedManyAnswer, TaskAccepted
from app.bootstrap import ApiResources
from app.domain.api_key import Scope
from app.domain.events import EventType
from app.domain.rules import Id
from app.errors import Overloaded
from app.observability import metrics
from app.observability.tracing import current_trace_id
from app.services.event_status import status_of

router = APIRouter(prefix="/api/v1", tags=["events"], route_class=GuardedRoute)

MANY = "/api/v1/events"
"""The path whose bodies are read as they arrive."""

READ_AT_ONCE = 8
"""Bodies of many events that one process reads at a time: each is up to 30 MB in memory before it is published."""

_reading = asyncio.BoundedSemaphore(READ_AT_ONCE)

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="A repeat with the same key is the same event."),
]

_EXAMPLE: list[dict[str, Any]] = [
    {"type": "cost.changed", "subject": "P-100", "location": "NY", "data": {"amount": 9.10}},
    {"id": "stock-4711", "type": "stock.changed", "subject": "P-101", "location": "NY", "data": {"quantity": 12}},
]
_MANY = f"""Accept up to {MAX_EVENTS:,} events, as an array or as NDJSON: all of them or none.

Each is what POST /publish-market-event takes. With 202 all are in the stream, in this order. With any other status
none is: one malformed event refuses the request, and `errors` says what is wrong with which. A body that does not
arrive whole within {UPLOAD_S:g} s is as if it had not been sent.

After a 503 or a lost answer, try again: an event whose `id` is known is not published twice. If you give no ids, send
an Idempotency-Key, and the same body again: each event's id is then made of the key and of its place.
"""
_MANY_BODY = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/MarketEvent"},
                "minItems": 1,
                "maxItems": MAX_EVENTS,
                "examples": [_EXAMPLE],
            }
        },
        NDJSON: {
            "schema": {
                "type": "string",
                "description": "A MarketEvent as JSON in each line; blank lines are ignored.",
                "contentMediaType": NDJSON,
            },
            "example": '{"type":"cost.changed","subject":"P-100","location":"NY","data":{"amount":9.10}}\n',
        },
    },
}


@router.post(
    "/publish-market-event",
    dependencies=[needs(Scope.PUBLISH)],
    status_code=202,
    response_model=PublishedAnswer,
    responses=documented(400, 503),
    summary="Publish a market event",
)
async def publish_market_event(
    deps: Deps, event: Annotated[MarketEvent | None, Body()] = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Accept an event: it is in the stream when this answers. An empty body recalculates everything.

    `data` per type: `list_price.changed`, `cost.changed`, `competitor_price.changed`: `{amount, currency?}`;
    `demand.changed`: `{index}`; `stock.changed`: `{quantity}`; `promotion.changed`: `{promotion}` or
    `{removed: id}`; `policy.changed`: `{policy}` or `{removed: id}`; `recalculate`: nothing.
    """
    event_id = await _publish_one(event or MarketEvent(type=EventType.RECALCULATE), idempotency_key, deps)
    published = {
        "status": "accepted",
        "channel": deps.settings.event_channel,
        "event_id": event_id,
        "trace_id": current_trace_id(),
    }
    return answer(published, 202)


@router.post(
    "/events",
    dependencies=[needs(Scope.PUBLISH)],
    status_code=202,
    response_model=PublishedManyAnswer,
    responses=documented(400, 408, 415, 503),
    summary="Publish many market events",
    description=_MANY,
    openapi_extra={"requestBody": _MANY_BODY},
)
async def publish_market_events(request: Request, deps: Deps, idempotency_key: IdempotencyKey = None) -> Response:
    """Accept many events, all or none."""
    if _reading.locked():
        raise Overloaded(f"{READ_AT_ONCE} requests of many events are being read already", retry_after_s=1)
    async with _reading:
        settings = deps.settings
        events = await read_batch(request, idempotency_key, settings.max_bulk_bytes, settings.max_body_bytes)
        duplicates = await _publish(events, deps)
    published = {
        "status": "accepted",
        "accepted": len(events) - duplicates,
        "duplicates": duplicates,
        "event_ids": [event.event_id for event in events],
        "trace_id": current_trace_id(),
    }
    return answer(published, 202)


@router.post(
    "/recalculate",
    dependencies=[needs(Scope.PUBLISH)],
    status_code=202,
    response_model=TaskAccepted,
    responses=documented(503),
    summary="Recalculate every price",
)
async def recalculate(deps: Deps, idempotency_key: IdempotencyKey = None) -> Response:
    """Look at every price sheet again in the background; GET /tasks/{task_id} shows the progress."""
    event_id = await _publish_one(MarketEvent(type=EventType.RECALCULATE), idempotency_key, deps)
    return answer({"task_id": event_id}, 202, {"Location": f"/api/v1/tasks/{event_id}"})


@router.get(
    "/events/{event_id}",
    dependencies=[needs(Scope.READ)],
    response_model=EventStatus,
    responses=documented(404, 503),
    summary="What became of an event",
)
async def get_event(event_id: Id, deps: Deps) -> Response:
    """Accepted: it waits. Applied: its effect is committed, or has become a task. Dead: nobody could apply it, and
    `dead_letter` says why. 404: it was never accepted, or is forgotten: what waits is remembered for
    PRICING_IDEMPOTENCY_TTL_S, what was applied for PRICING_RETENTION_DAYS."""
    place = await deps.publisher.place(event_id)
    return answer(await anyio.to_thread.run_sync(status_of, event_id, place, deps.dead_letters, deps.store))


async def _publish_one(given: MarketEvent, idempotency_key: str | None, deps: ApiResources) -> str:
    event_id = given.id or event_id_from(idempotency_key, given)
    await _publish([encoded(given, event_id, datetime.now(UTC))], deps)
    return event_id


async def _publish(events: list[Encoded], deps: ApiResources) -> int:
    """How many of them were known. Raises `Overloaded`, `Unavailable`."""
    known = await deps.publisher.accept(events)
    new = Counter(event.type for index, event in enumerate(events) if index not in known)
    for type_, count in new.items():
        metrics.events_published.labels(type_.value, "api").inc(count)
    return len(known)
