"""Many events in one body: read as they arrive, checked one by one, taken as a whole or not at all."""

import asyncio
import hashlib
from datetime import UTC, datetime
from uuid import uuid4

from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from app.adapters.event_publishing import MAX_EVENTS, Encoded
from app.api.bodies import items_of
from app.api.problems import MAX_ERRORS, FieldError, InvalidBody, plain
from app.api.schemas import MarketEvent
from app.domain.events import encode_event, problems

UPLOAD_S = 30.0
"""A body that takes longer than this to arrive is given up, in seconds."""

_TURN = 64
"""Events that are decoded, in half a millisecond, before others on this event loop have their turn."""


class EventBatch:
    """The events of one request so far, and what is wrong with them."""

    def __init__(self, idempotency_key: str | None, max_event_bytes: int) -> None:
        self._key, self._max_event_bytes = idempotency_key, max_event_bytes
        self._now = datetime.now(UTC)
        self._places: dict[str, int] = {}
        self._errors: list[FieldError] = []
        self._error_count = self._malformed = self._seen = 0
        self.events: list[Encoded] = []

    def add(self, index: int, item: bytes) -> None:
        """Take the next event, as JSON. Raises `InvalidBody` for one too many."""
        self._seen += 1
        if self._seen > MAX_EVENTS:
            raise InvalidBody(f"A request may have {MAX_EVENTS:,} events at most. None was published.")
        if len(item) > self._max_event_bytes:
            self._refuse(index, [("", f"An event may have {self._max_event_bytes:,} bytes at most.")])
            return
        try:
            given = MarketEvent.model_validate_json(item)
        except ValidationError as error:
            self._refuse(index, problems(error))
            return
        event_id = given.id or event_id_from(self._key, given, index)
        earlier = self._places.setdefault(event_id, index)
        if earlier != index:
            self._refuse(index, [("id", f"The event at index {earlier} has the same id.")])
            return
        if self._malformed == 0:
            self.events.append(encoded(given, event_id, self._now))

    def _refuse(self, index: int, found: list[tuple[str, str]]) -> None:
        self._malformed += 1
        self._error_count += len(found)
        self.events.clear()
        for path, message in found[: MAX_ERRORS - len(self._errors)]:
            where = plain(f"body.{index}.{path}".rstrip("."))
            self._errors.append(FieldError(index=index, path=where, message=plain(message)))

    def check(self) -> None:
        """Raises `InvalidBody` unless there are events and all of them are sound."""
        if self._malformed:
            raise InvalidBody(
                f"{self._malformed:,} of {self._seen:,} events are malformed. None was published.",
                self._errors,
                self._error_count,
            )
        if not self.events:
            raise InvalidBody("There is no event in the body.")


async def read_batch(
    request: Request, idempotency_key: str | None, max_body_bytes: int, max_event_bytes: int
) -> list[Encoded]:
    """The events of a request, when the whole body has come and all of it is sound. Raises `InvalidBody`, and
    `HTTPException` for a body that cannot be read."""
    batch = EventBatch(idempotency_key, max_event_bytes)
    turn = 0
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for index, item in items_of(request, max_body_bytes, max_event_bytes):
                batch.add(index, item)
                turn += 1
                if turn % _TURN == 0:
                    await asyncio.sleep(0)
    except TimeoutError:
        raise HTTPException(408, f"The body did not arrive within {UPLOAD_S:g} s.", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The body ended early.") from None
    batch.check()
    return batch.events


def encoded(given: MarketEvent, event_id: str, now: datetime) -> Encoded:
    """An event as it goes into the stream."""
    update = {"id": event_id, "time": given.time or now, "traceparent": None}
    return Encoded(event_id, given.type, given.subject, encode_event(given.model_copy(update=update)))


def event_id_from(idempotency_key: str | None, given: MarketEvent, index: int | None = None) -> str:
    """The same key, event and place in the request give the same id; a key that is used again for another event
    does not."""
    if idempotency_key is None:
        return str(uuid4())
    place = "" if index is None else f"{index}\n"
    return hashlib.sha256(f"{idempotency_key}\n{place}{given.model_dump_json()}".encode()).hexdigest()[:32]
