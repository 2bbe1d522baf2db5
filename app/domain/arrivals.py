"""What comes out of the stream of request records: batches of them, and the ends of their sources."""

from collections.abc import Mapping
from typing import NamedTuple

from app.domain.telemetry import RecordBatch, decode_batch

DAY_US = 86_400_000_000

MOST_AHEAD_US = DAY_US
"""A clock may be a day ahead of the stream's."""


class SourceEnd(NamedTuple):
    """A process has ended, and `last` is the last number that it gave a request; 0 where it answered none."""

    source: str
    last: int


class Arrival(NamedTuple):
    """What an entry of the stream holds, and when it was put there: ms since 1970, by the stream's clock. Where some
    of the requests are traced, `traceparent` is of the span that leads to them."""

    arrived_ms: int
    content: RecordBatch | SourceEnd
    traceparent: str | None = None

    @property
    def records(self) -> int:
        return len(self.content.records) if isinstance(self.content, RecordBatch) else 0


def decode_arrival(stream_id: str, fields: Mapping[bytes, bytes]) -> Arrival:
    """Raises ValueError where the entry holds neither a batch nor an end, or not what it says of it."""
    arrived_ms = int(stream_id.partition("-")[0])
    try:
        source = fields[b"source"].decode()
        if b"ended" in fields:
            return Arrival(arrived_ms, SourceEnd(source, _number(fields[b"ended"], 0)))
        batch = decode_batch(fields[b"batch"])
        said = (source, _number(fields[b"first"], 1), _number(fields[b"count"], 1))
    except KeyError as error:
        raise ValueError(f"the entry has no field {error.args[0].decode()}") from None
    if said != (batch.source, batch.first, len(batch.records)):
        raise ValueError(f"the entry says {said}, its batch {(batch.source, batch.first, len(batch.records))}")
    traceparent = fields.get(b"traceparent")
    return Arrival(arrived_ms, batch, traceparent.decode() if traceparent is not None else None)


def placed_us(batch: RecordBatch, arrived_ms: int, kept_days: float) -> tuple[list[int], int]:
    """When each request of a batch began, in us since 1970, and how many of these had to be placed: one that cannot
    have begun when it says, because its process had the clock of another year, is placed where its record arrived.
    Elsewhere there is no room for it, and it is billed."""
    arrived_us = arrived_ms * 1000
    earliest_us, latest_us = arrived_us - int(kept_days * DAY_US), arrived_us + MOST_AHEAD_US
    started_us = [record.started_at_ns // 1000 for record in batch.records]
    if earliest_us <= min(started_us) and max(started_us) <= latest_us:
        return started_us, 0
    placed = [us if earliest_us <= us <= latest_us else arrived_us for us in started_us]
    return placed, sum(us != before for us, before in zip(placed, started_us, strict=True))


def _number(text: bytes, least: int) -> int:
    number = int(text)
    if number < least:
        raise ValueError(f"{number} is less than {least}")
    return number
