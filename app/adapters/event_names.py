"""What the events' things are called in Redis."""

from typing import NamedTuple

STREAM_ID_PREFIX = b'{"streamid":'
"""How a message on the channel begins whose event is in the stream already."""


class Names(NamedTuple):
    """Those whose names are settings."""

    stream: str
    channel: str
    group: str
    dead_letters: str


def tally_key(names: Names) -> str:
    """The hash that counts what has left the stream, by what became of it."""
    return f"{names.stream}:tally"


def seen_key(event_id: str) -> str:
    """The key that remembers an id: its value is the stream id that the event has."""
    return f"event:{event_id}"
