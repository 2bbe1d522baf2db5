"""Events in: accepted once they are in the stream, applied in the background."""

import hashlib
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Body, Header, Response

from app.api.answers import answer
from app.api.deps import Deps
from app.api.problems import documented
from app.api.schemas import MarketEvent, PublishedAnswer, TaskAccepted
from app.bootstrap import ApiResources
from app.domain.events import Event, EventType
from app.observability import metrics
from app.observability.tracing import current_trace_id

router = APIRouter(prefix="/api/v1", tags=["events"])

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="A repeat with the same key is the same event."),
]


@router.post(
    "/publish-market-event",
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
    event_id = await _publish(event or MarketEvent(type=EventType.RECALCULATE), idempotency_key, deps)
    published = {
        "status": "accepted",
        "channel": deps.settings.event_channel,
        "event_id": event_id,
        "trace_id": current_trace_id(),
    }
    return answer(published, 202)


@router.post(
    "/recalculate",
    status_code=202,
    response_model=TaskAccepted,
    responses=documented(503),
    summary="Recalculate every price",
)
async def recalculate(deps: Deps, idempotency_key: IdempotencyKey = None) -> Response:
    """Look at every price sheet again in the background; GET /tasks/{task_id} shows the progress."""
    event_id = await _publish(MarketEvent(type=EventType.RECALCULATE), idempotency_key, deps)
    return answer({"task_id": event_id}, 202, {"Location": f"/api/v1/tasks/{event_id}"})


async def _publish(given: MarketEvent, idempotency_key: str | None, deps: ApiResources) -> str:
    event_id = given.id or _id_from(idempotency_key, given)
    event = Event(
        **given.model_dump(exclude={"id", "time"}),
        id=event_id,
        time=given.time or datetime.now(UTC),
    )
    _, new = await deps.publisher.publish(event)
    if new:
        metrics.events_published.labels(event.type.value, "api").inc()
    return event_id


def _id_from(idempotency_key: str | None, given: MarketEvent) -> str:
    """The same key and the same event give the same id; a key that is used again for another event does not."""
    if idempotency_key is None:
        return str(uuid4())
    said = f"{idempotency_key}\n{given.model_dump_json()}"
    return hashlib.sha256(said.encode()).hexdigest()[:32]
