"""What becomes of a batch from an inbox: applied and settled, tried again later, or set aside."""

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import NamedTuple

from app.domain.events import Event
from app.domain.positions import position
from app.errors import PricingError, Unavailable
from app.services.applying import Positioned, Refused, apply_events
from app.services.ports import (
    DIED,
    TOGETHER,
    Breakers,
    BreakerState,
    Clock,
    Failure,
    Fate,
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

_ALONE = len(TOGETHER) + 1
"""From this attempt on an entry has been tried alone; before, it may have failed for another's fault."""


class Delivered(NamedTuple):
    """What became of a batch. By stream id, the `fates` of its entries: applied for the first time, repeated (applied
    before), dead (set aside as one of `letters`), or failed and to be tried again, because of `error` where that was
    unforeseen; `wide` are those for which a recalculation goes on. `sheets` are the prices that changed. `breaker` is
    that of the work after it."""

    fates: Mapping[str, Fate]
    letters: Sequence[Letter]
    breaker: BreakerState
    wide: Set[str] = frozenset()
    sheets: int = 0
    error: Exception | None = None

    @property
    def applied(self) -> int:
        return self._count("applied")

    @property
    def repeated(self) -> int:
        return self._count("repeated")

    @property
    def failed(self) -> int:
        return self._count("failed")

    def _count(self, fate: Fate) -> int:
        return list(self.fates.values()).count(fate)


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

    Raises `LockLost` or `Unavailable`, or SystemExit where the process is told to end at once, with the batch back in
    its inbox: that is not the events' fault.
    """
    bad = [_refusal(w, malformed[w.stream_id], final=True) for w in batch if w.stream_id in malformed]
    bad += [
        _Setback(w, f"{max_attempts} processes ended with it in hand", DIED, True) for w in _deadly(batch, max_attempts)
    ]
    unsound = {setback.waiting.stream_id for setback in bad}
    sound = [w for w in batch if w.stream_id not in unsound]
    positioned = [_positioned(w, events[w.stream_id]) for w in sound]
    try:
        try:
            applied = apply_events(held, positioned, store=store, cache=cache, queue=queue)
        except (PricingError, ConnectionError, TimeoutError):
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            state = breakers.note(APPLYING, bad=1, reason=told)
            bad += [
                _Setback(w, f"{max_attempts} attempts failed", told, _was_last(w, batch, max_attempts)) for w in sound
            ]
            return _settle(held, {}, bad, state, events, inboxes, clock)._replace(error=error)
        in_hand = {w.stream_id for w in batch}
        tried = [w for w in sound if w.stream_id not in applied.left]
        refused = {refusal.stream_id: refusal for refusal in applied.refused}
        done: dict[str, Fate] = {
            w.stream_id: "applied" if w.stream_id in applied.new else "repeated"
            for w in tried
            if w.stream_id not in refused
        }
        bad += _refusals([w for w in tried if w.stream_id in refused], refused, in_hand - applied.left, events, inboxes)
        final = [setback.reason for setback in bad if setback.final and setback.is_news]
        state = breakers.note(APPLYING, good=len(done), bad=len(final), reason=final[0] if final else "")
        settled = _settle(held, done, bad, state, events, inboxes, clock)
    except (PricingError, ConnectionError, TimeoutError, SystemExit):
        with suppress(Unavailable):
            inboxes.put_back(held)
        raise
    return settled._replace(wide=applied.wide, sheets=applied.sheets)


def _positioned(waiting: Waiting, event: Event) -> Positioned:
    """What comes again, from the dead letters, keeps the place that it had."""
    return Positioned(waiting.stream_id, position(event.streamid) if event.streamid else waiting.position, event)


class _Setback(NamedTuple):
    """An entry that was not applied. `final`: another try is of no use, and `reason` says why. That an event is refused
    once more is no news: it says nothing of how the work goes. `replayed`: it was set aside before, and may be again
    whatever fails."""

    waiting: Waiting
    reason: str
    error: str
    final: bool
    is_news: bool = True
    replayed: bool = False


def _deadly(batch: Sequence[Waiting], max_attempts: int) -> list[Waiting]:
    """Those that too many processes have died with: no further one is to."""
    most = max(max_attempts, _ALONE)
    return [w for w in batch if w.failure and w.failure.last_error == DIED and w.failure.attempts >= most]


def _was_last(waiting: Waiting, batch: Sequence[Waiting], max_attempts: int) -> bool:
    """Whether it has failed often enough; in company it may have been another's fault."""
    attempts = 1 + (waiting.failure.attempts if waiting.failure else 0)
    return len(batch) == 1 and attempts >= max_attempts


def _refusals(
    waiting: Sequence[Waiting],
    refused: Mapping[str, Refused],
    in_hand: Set[str],
    events: Mapping[str, Event],
    inboxes: Inboxes,
) -> list[_Setback]:
    """A refusal that may pass is final only where nothing older is still to be applied: a suspect, an entry of another
    scope, or one that another listener has read and not yet put into an inbox."""
    may_pass = any(refused[w.stream_id].may_pass for w in waiting)
    oldest = inboxes.oldest_pending(but=in_hand) if may_pass else None
    setbacks = []
    for w in waiting:
        refusal, replayed = refused[w.stream_id], events[w.stream_id].streamid is not None
        final = not refusal.may_pass or oldest is None or oldest > w.position
        setbacks.append(_refusal(w, refusal.reason, final, replayed))
    return setbacks


def _refusal(waiting: Waiting, reason: str, final: bool, replayed: bool = False) -> _Setback:
    again = replayed or (waiting.failure is not None and waiting.failure.last_error == reason)
    return _Setback(waiting, reason, reason, final, is_news=not again, replayed=replayed)


def _settle(
    held: Held,
    done: Mapping[str, Fate],
    bad: Sequence[_Setback],
    state: BreakerState,
    events: Mapping[str, Event],
    inboxes: Inboxes,
    clock: Clock,
) -> Delivered:
    # Where too much fails it is probably not the events' fault, and none is set aside for it; but for those that were
    # before, and come again although what was wrong with them still is.
    closed = state is BreakerState.CLOSED
    final: list[_Setback] = []
    failed: list[tuple[Waiting, str]] = []
    for setback in bad:
        if setback.final and (closed or setback.replayed):
            final.append(setback)
        else:
            failed.append((setback.waiting, setback.error))
    letters = [_letter(setback, events.get(setback.waiting.stream_id), clock()) for setback in final]
    if failed:
        inboxes.fail(held, failed)
    inboxes.settle(held, done, letters)
    fates: dict[str, Fate] = {waiting.stream_id: "failed" for waiting, _ in failed}
    fates |= {letter.stream_id: "dead" for letter in letters}
    return Delivered({**done, **fates}, letters, state)


def _letter(setback: _Setback, event: Event | None, now: int) -> Letter:
    waiting, error = setback.waiting, setback.error
    failure = waiting.failure or Failure(0, error, now, error, now)
    if error != DIED:  # a death has been counted by whoever found it
        failure = failure._replace(attempts=failure.attempts + 1, last_error=error, last_failed_at=now)
    trace_id = event.traceparent.split("-")[1] if event is not None and event.traceparent else ""
    event_id = event.id if event is not None else ""
    return Letter(waiting.stream_id, waiting.event, event_id, trace_id, setback.reason, failure)
