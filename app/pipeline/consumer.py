"""From a stream into one sink, by the sink's own consumer group: nothing is lost, and each sink delays only itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from app.domain.stream_entry import Setback, SinkLetter, StreamEntry
from app.errors import TRANSIENT, InvalidInput, Unavailable
from app.pipeline.retry import Retry
from app.pipeline.sinks import Breaker, Group, Sink
from app.services.ports import DIED, BreakerState, Clock

T = TypeVar("T")


class Decoded(NamedTuple, Generic[T]):
    """What an entry holds, and how many records that is."""

    item: T
    records: int


class Terms(NamedTuple):
    """Entries are read and written `read_count` at a time. What another consumer has not acknowledged for
    `reclaim_idle_s` is taken over: longer than any write takes. An entry that failed `max_attempts` times, tried
    alone, is a dead letter."""

    read_count: int = 64
    reclaim_idle_s: float = 60.0
    max_attempts: int = 5


class Consumer(Generic[T]):
    """Works in turns, by whoever calls `work`; several may, each by a name of its own.

    `decode` raises ValueError for an entry that no sink can ever take. `breaker` is asked before each read: while it
    is open nothing is read, and the backlog stays in the stream. `stopping` tells that the turn shall end after the
    write in hand. `clock` gives ms since 1970.
    """

    def __init__(
        self,
        name: str,
        group: Group,
        decode: Callable[[StreamEntry], Decoded[T]],
        sink: Sink[T],
        breaker: Breaker,
        *,
        retry: Retry,
        clock: Clock,
        stopping: Callable[[], bool] = lambda: False,
        terms: Terms = Terms(),  # noqa: B008 - a constant
    ) -> None:
        self._name, self._group, self._decode, self._sink, self._breaker = name, group, decode, sink, breaker
        self._retry, self._clock, self._stopping, self._terms = retry, clock, stopping, terms

    def work(self, turn_s: float) -> bool:
        """Write what waits, for about so many seconds; whether there may be more to do now.

        Raises what the sink or the stream last said where either is away: what was read stays this consumer's, and
        its next turn begins with it.
        """
        until = self._clock() + int(turn_s * 1000)
        granted = self._breaker.let_through()
        if granted is BreakerState.HALF_OPEN and (entries := self._group.read(self._name, 1)):
            self._together(entries)  # of what failed before, the cause may be in it
            granted = self._breaker.let_through()
        for entries in self._left():
            for entry in entries:
                if granted is BreakerState.OPEN:
                    return False
                self._alone(entry)
                if self._is_over(until):
                    return True
                granted = self._breaker.let_through()
        while granted is not BreakerState.OPEN:
            entries = self._group.read(self._name, self._terms.read_count)
            if not entries:
                self._breaker.note()
                return False
            self._together(entries)
            if self._is_over(until):
                return True
            granted = self._breaker.let_through()
        return False

    def replay(self, letter: SinkLetter) -> bool:
        """Write a dead letter after all; whether it was still there. Raises what `decode` and the sink raise."""
        decoded = self._decode(letter.entry)
        self._sink.write([decoded.item])
        return self._group.revive(letter, decoded.records)

    def _left(self) -> Iterator[list[StreamEntry]]:
        """What this consumer's last turn or one that died has read and not brought to an end. Whatever it was that
        happened, one of them may be why, so each is tried alone."""
        yield from self._group.unacknowledged(self._name, self._terms.read_count)
        yield self._group.reclaim(self._name, self._terms.reclaim_idle_s, self._terms.read_count)

    def _together(self, entries: Sequence[StreamEntry]) -> None:
        decoded: dict[str, Decoded[T]] = {}
        malformed: list[tuple[StreamEntry, str]] = []
        for entry in entries:
            try:
                decoded[entry.stream_id] = self._decode(entry)
            except ValueError as error:
                malformed.append((entry, _told(error)))
        if decoded:
            try:
                self._write(list(decoded.values()))
            except TRANSIENT:
                raise
            except Exception:  # one of them may be the cause: which, they tell one by one
                for entry in entries:
                    if entry.stream_id in decoded:
                        self._alone(entry)
            else:
                self._settle(decoded)
        for entry, told in malformed:
            self._fail(entry, None, told, "malformed", final=True)

    def _alone(self, entry: StreamEntry) -> None:
        before = self._group.setback(entry.stream_id)
        now = self._clock()
        try:
            decoded = self._decode(entry)
        except ValueError as error:
            self._fail(entry, before, _told(error), "malformed", final=True)
            return
        if before is not None and before.last_error == DIED and before.attempts >= self._terms.max_attempts:
            self._group.bury(entry, f"{before.attempts} processes ended with it in hand", before)
            return
        # Noted beforehand, so that an entry that ends the process that tries it counts, too.
        self._group.note(entry.stream_id, _again(before, DIED, now))
        try:
            self._write([decoded])
        except TRANSIENT:
            self._group.note(entry.stream_id, before)  # that was not the entry's fault
            raise
        except InvalidInput as error:
            self._fail(entry, _again(before, _told(error), now), _told(error), "refused", final=True)
        except Exception as error:
            after = _again(before, _told(error), now)
            is_last = after.attempts >= self._terms.max_attempts
            self._fail(entry, after, _told(error), "every attempt failed", final=is_last)
        else:
            self._settle({entry.stream_id: decoded})

    def _write(self, decoded: Sequence[Decoded[T]]) -> None:
        def failed(error: Exception) -> bool:
            return self._breaker.note(bad=1, reason=str(error)) is not BreakerState.OPEN and not self._stopping()

        self._retry.call(lambda: self._sink.write([each.item for each in decoded]), failed)

    def _settle(self, decoded: dict[str, Decoded[T]]) -> None:
        self._breaker.note(good=len(decoded))
        self._group.settle({stream_id: each.records for stream_id, each in decoded.items()})

    def _fail(self, entry: StreamEntry, setback: Setback | None, error: str, reason: str, *, final: bool) -> None:
        """An entry failed by itself. Where too many do it is probably not theirs: the breaker opens, nobody is set
        aside, and one try at a time finds out when it is over."""
        now = self._clock()
        setback = setback or Setback(0, error, now, error, now)
        state = self._breaker.note(bad=1, reason=error)
        if final and state is BreakerState.CLOSED:
            self._group.bury(entry, reason, setback)
        else:
            self._group.note(entry.stream_id, setback)
        if state is BreakerState.OPEN:
            raise Unavailable(f"too many entries fail; the last one: {error}")

    def _is_over(self, until: int) -> bool:
        return self._clock() >= until or self._stopping()


def _again(before: Setback | None, error: str, now: int) -> Setback:
    if before is None:
        return Setback(1, error, now, error, now)
    return before._replace(attempts=before.attempts + 1, last_error=error, last_failed_at=now)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
