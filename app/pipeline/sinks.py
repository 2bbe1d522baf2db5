"""What a pipeline ends in, and what stands before it. `app.adapters` has what fits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from app.domain.stream_entry import Setback, SinkLetter, StreamEntry
from app.services.ports import BreakerState

T_contra = TypeVar("T_contra", contravariant=True)


class Sink(Protocol[T_contra]):
    """Where items end up for good. `tests/support/sink_contract.py` has what every sink must pass."""

    def write(self, items: Sequence[T_contra]) -> None:
        """All of them, for good once it returns; where it raises, none or any. Items that were written before change
        nothing: each may come again, together with others.

        Raises one of `app.errors.TRANSIENT` where the sink is away or too busy, `InvalidInput` where it will never
        take these items; anything else is taken for a defect that one of the items may have caused.
        """
        ...


class Group(Protocol):
    """A sink's own consumer group of a stream. Every method raises `Unavailable` where the stream is away."""

    def unacknowledged(self, consumer: str, count: int) -> Iterator[list[StreamEntry]]: ...
    def reclaim(self, consumer: str, idle_s: float, count: int) -> list[StreamEntry]: ...
    def read(self, consumer: str, count: int) -> list[StreamEntry]: ...
    def settle(self, records: Mapping[str, int]) -> int:
        """Acknowledge entries that were written, by stream id with the number of their records, and count them."""
        ...

    def bury(self, entry: StreamEntry, reason: str, setback: Setback) -> bool:
        """Make a dead letter of an entry and acknowledge it, in one step; whether it was still there."""
        ...

    def setback(self, stream_id: str) -> Setback | None: ...
    def note(self, stream_id: str, setback: Setback | None) -> None: ...
    def revive(self, letter: SinkLetter, records: int) -> bool:
        """Put a letter away that was delivered after all; whether it was still there."""
        ...


class Breaker(Protocol):
    """Of one sink, shared by all who write to it."""

    def let_through(self) -> BreakerState: ...
    def note(self, *, good: int = 0, bad: int = 0, reason: str = "") -> BreakerState: ...
