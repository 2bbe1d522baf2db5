"""What becomes of a batch from an inbox: applied and settled, tried again later, or set aside."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.domain.events import Event
from app.errors import PricingError
from app.services.applying import Positioned, apply_events
from app.services.ports import (
    Breakers,
    BreakerState,
    Clock,
    Failure,
    Held,
    Inboxes,
    Letter,
    SheetCache,
    Store,
    TaskQueue,
    Waiting,
)

APPLYING = "apply_events"
"""The breaker of this work."""


class Delivered(NamedTuple):
    """What became of a batch, in entries: `applied` for the first time, `repeated` (applied before), set aside as
    `letters`, or `failed` and to be tried again, because of `error` where that was unforeseen."""

    applied: int
    repeated: int
    letters: Sequence[Letter]
    failed: int
    sheets: int
    error: Exception | None


def deliver(
    held: Held,
    batch: Sequence[Waiting],
    events: Mapping[str, Event],
    malformed: Mapping[str, str],
    *,
    inboxes: Inboxes,
    breakers: Breakers,
    store: Store,
    cache: SheetCache,
    queue: TaskQueue,
    clock: Clock,
    max_attempts: int,
) -> Delivered:
    """Apply a batch that was taken from the inbox whose lock is `held`, and settle it. By stream id, `events` are
    those that could be decoded, `malformed` the reasons why the others could not.

    Raises `LockLost` or `Unavailable`, with the batch back in its inbox: that is not the events' fault.
    """
    positioned = [Positioned(w.stream_id, w.position, events[w.stream_id]) for w in batch if w.stream_id in events]
    try:
        applied = apply_events(held, positioned, store=store, cache=cache, queue=queue, clock=clock)
    except (PricingError, ConnectionError, TimeoutError):
        inboxes.put_back(held.scope)
        raise
    except Exception as error:
        state = breakers.note(APPLYING, bad=1, reason=_told(error))
        hopeless = {w.stream_id: f"{max_attempts} attempts failed" for w in batch if _attempts(w) + 1 >= max_attempts}
        failed = {w.stream_id: _told(error) for w in batch if w.stream_id not in hopeless}
        outcome = _Outcome([], hopeless, failed, _told(error))
        return _settle(held.scope, batch, events, outcome, state, inboxes, clock)._replace(error=error)

    refused = {refusal.stream_id: refusal.reason for refusal in applied.refused}
    # Where something older may still change what this one was refused for, the refusal is not final.
    early = _after_suspects(held.scope, batch, refused, inboxes)
    final = {stream_id: reason for stream_id, reason in {**refused, **malformed}.items() if stream_id not in early}
    done = [w.stream_id for w in batch if w.stream_id not in refused and w.stream_id not in malformed]
    state = breakers.note(APPLYING, good=len(done), bad=len(final), reason=next(iter(final.values()), ""))
    outcome = _Outcome(done, final, {stream_id: refused[stream_id] for stream_id in early}, "")
    settled = _settle(held.scope, batch, events, outcome, state, inboxes, clock)
    return settled._replace(applied=applied.new, repeated=len(done) - applied.new, sheets=applied.sheets)


class _Outcome(NamedTuple):
    """Stream ids of a batch: done, final failures with the reason, failures to try again with the error."""

    done: list[str]
    final: dict[str, str]
    failed: dict[str, str]
    error: str


def _settle(
    scope: str,
    batch: Sequence[Waiting],
    events: Mapping[str, Event],
    outcome: _Outcome,
    state: BreakerState,
    inboxes: Inboxes,
    clock: Clock,
) -> Delivered:
    final, failed = outcome.final, outcome.failed
    if state is not BreakerState.CLOSED:
        # Too much fails: it is probably not the events' fault, and they are not set aside for it.
        final, failed = {}, failed | final
    letters = [
        _letter(w, events.get(w.stream_id), final[w.stream_id], outcome.error or final[w.stream_id], clock())
        for w in batch
        if w.stream_id in final
    ]
    if failed:
        inboxes.fail(scope, [w for w in batch if w.stream_id in failed], next(iter(failed.values())))
    inboxes.settle(scope, outcome.done, letters)
    return Delivered(0, 0, letters, len(failed), 0, None)


def _after_suspects(scope: str, batch: Sequence[Waiting], refused: Mapping[str, str], inboxes: Inboxes) -> set[str]:
    """Those of the refused that come after an entry which failed and may still succeed."""
    if not refused:
        return set()
    suspects = [position for position in inboxes.suspects(scope) if position not in {w.position for w in batch}]
    oldest = min(suspects, default=None)
    return {w.stream_id for w in batch if w.stream_id in refused and oldest is not None and oldest < w.position}


def _letter(waiting: Waiting, event: Event | None, reason: str, error: str, now: int) -> Letter:
    before = waiting.failure or Failure(0, error, now, error, now)
    failure = before._replace(attempts=before.attempts + 1, last_error=error, last_failed_at=now)
    trace_id = event.traceparent.split("-")[1] if event is not None and event.traceparent else ""
    return Letter(waiting.stream_id, waiting.event, event.id if event is not None else "", trace_id, reason, failure)


def _attempts(waiting: Waiting) -> int:
    return waiting.failure.attempts if waiting.failure is not None else 0


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
