"""Dead letters: events that nobody could apply. Whoever mended the cause replays them; nobody else discards them."""

from datetime import UTC, datetime
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Response

from app.api.answers import answer
from app.api.deps import Deps
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import (
    DeadLetter,
    DeadLetterIds,
    DeadLetterPage,
    DiscardedAnswer,
    Instant,
    LetterId,
    ReplayedAnswer,
    ReplayedManyAnswer,
)
from app.domain import dead_letter as domain
from app.domain.api_key import Scope
from app.domain.events import EventType
from app.errors import NotFound
from app.observability import metrics
from app.services import dead_letters

router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"], route_class=GuardedRoute)


@router.get(
    "",
    dependencies=[needs(Scope.READ)],
    response_model=DeadLetterPage,
    responses=documented(503),
    summary="List dead letters",
)
async def list_dead_letters(
    deps: Deps,
    before: Annotated[str, Query(pattern=r"^([0-9]{1,19}-[0-9]{1,19})?$", description="Only those before this.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    reason: Annotated[str, Query(max_length=200, description="Only those with this in their reason.")] = "",
    type: Annotated[EventType | None, Query(description="Only those about events of this type.")] = None,
    since: Annotated[Instant | None, Query(description="Only those set aside from then on.")] = None,
    until: Annotated[Instant | None, Query(description="Only those set aside before then.")] = None,
) -> Response:
    """The newest first. Where few of many are wanted, a page may be short, even empty, and not the last."""
    wanted = domain.Wanted(reason, type, _ms(since) or 0, _ms(until))

    def look() -> tuple[list[domain.DeadLetter], str | None, int]:
        return *dead_letters.page(deps.dead_letters, wanted, before, limit), deps.dead_letters.count()

    letters, next_before, total = await anyio.to_thread.run_sync(look)
    return answer({"items": [letter.summary() for letter in letters], "next_before": next_before, "total": total})


@router.get(
    "/{letter_id}",
    dependencies=[needs(Scope.READ)],
    response_model=DeadLetter,
    responses=documented(404, 503),
    summary="One dead letter",
)
async def get_dead_letter(letter_id: LetterId, deps: Deps) -> Response:
    """With the event, or with the beginning of a message that is none."""
    letter = await anyio.to_thread.run_sync(dead_letters.get, deps.dead_letters, letter_id)
    return answer(letter.whole())


@router.post(
    "/{letter_id}/replay",
    dependencies=[needs(Scope.ADMIN)],
    status_code=202,
    response_model=ReplayedAnswer,
    responses=documented(404, 409, 429, 503),
    summary="Replay a dead letter",
)
async def replay_dead_letter(letter_id: LetterId, deps: Deps) -> Response:
    """Put its event into the stream again, and the letter away. The event keeps its id, so that it has effect once
    at most, and its place among the others: where something newer was applied meanwhile, that stays. GET /events/{id}
    tells what becomes of it. A repeat is answered with 404, a letter that holds no event with 409."""
    replayed = await anyio.to_thread.run_sync(dead_letters.replay, deps.dead_letters, letter_id)
    metrics.dead_letters_handled.labels("replayed").inc()
    return answer(replayed._asdict(), 202)


@router.post(
    "/replay",
    dependencies=[needs(Scope.ADMIN)],
    response_model=ReplayedManyAnswer,
    responses=documented(400, 429, 503),
    summary="Replay many dead letters",
)
async def replay_dead_letters(letters: DeadLetterIds, deps: Deps) -> Response:
    """In this order, as many as PRICING_REPLAYS_PER_S allows now, everybody's together; `not_yet` and Retry-After tell
    what is left and when to send it. 429 where not even the first is allowed now."""
    done = await anyio.to_thread.run_sync(dead_letters.replay_some, deps.dead_letters, letters.letter_ids)
    metrics.dead_letters_handled.labels("replayed").inc(len(done.replayed))
    content = {
        "replayed": [replayed._asdict() for replayed in done.replayed],
        "refused": [{"letter_id": letter_id, "reason": reason} for letter_id, reason in done.refused.items()],
        "gone": done.gone,
        "not_yet": done.not_yet,
    }
    return answer(content, 200, {"Retry-After": str(done.wait.seconds)} if done.wait else None)


@router.post(
    "/discard",
    dependencies=[needs(Scope.ADMIN)],
    response_model=DiscardedAnswer,
    responses=documented(400, 503),
    summary="Discard many dead letters",
)
async def discard_dead_letters(letters: DeadLetterIds, deps: Deps) -> Response:
    """For good: their events are never applied."""
    done = await anyio.to_thread.run_sync(dead_letters.discard, deps.dead_letters, letters.letter_ids)
    metrics.dead_letters_handled.labels("discarded").inc(len(done.discarded))
    return answer({"discarded": done.discarded, "gone": done.gone})


@router.delete(
    "/{letter_id}",
    dependencies=[needs(Scope.ADMIN)],
    status_code=204,
    responses=documented(404, 503),
    summary="Discard a dead letter",
)
async def discard_dead_letter(letter_id: LetterId, deps: Deps) -> Response:
    """For good: its event is never applied."""
    done = await anyio.to_thread.run_sync(dead_letters.discard, deps.dead_letters, [letter_id])
    if done.gone:
        raise NotFound(f"there is no dead letter {letter_id!r}; it may have been replayed or discarded")
    metrics.dead_letters_handled.labels("discarded").inc()
    return Response(status_code=204)


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else max(0, int(instant.astimezone(UTC).timestamp() * 1000))
