"""Entries of a stream as a consumer group has them, and what went wrong with some of them."""

from collections.abc import Mapping
from typing import NamedTuple


class StreamEntry(NamedTuple):
    """`fields` are empty where the entry was deleted by hand."""

    stream_id: str
    fields: Mapping[bytes, bytes]


class Setback(NamedTuple):
    """How often an entry was tried alone, in vain, and what was said. Times are ms since 1970."""

    attempts: int
    first_error: str
    first_failed_at: int
    last_error: str
    last_failed_at: int


class SinkLetter(NamedTuple):
    """A dead letter of one sink: an entry that it could not take, and why."""

    letter_id: str
    entry: StreamEntry
    reason: str
    setback: Setback
