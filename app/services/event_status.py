"""What became of an event."""

from typing import Any

from app.domain.dead_letter import instant
from app.errors import NotFound
from app.services.ports import DeadLetters, Store


def status_of(event_id: str, place: str | None, letters: DeadLetters, store: Store) -> dict[str, Any]:
    """Its status; `place` is its stream id, as far as it is remembered. Raises `NotFound`.

    Where it moves on meanwhile, this is how it was: each store is asked after the one that it comes from.
    """
    letter = letters.of_event(event_id)
    with store.reading() as tx:
        applied_at = tx.events.processed_at(event_id)
        task = tx.tasks.get(event_id) if applied_at is not None else None
    if applied_at is None and letter is None and place is None:
        raise NotFound(f"nothing is known of an event {event_id!r}")
    accepted = place or (letter.stream_id if letter is not None else "")
    status = "applied" if applied_at is not None else "dead" if letter is not None else "accepted"
    return {
        "event_id": event_id,
        "status": status,
        "accepted_at": instant(int(accepted.partition("-")[0] or 0)),
        "applied_at": applied_at,
        "task_id": task.task_id if task is not None else None,
        "dead_letter": letter.summary() if letter is not None else None,
    }
