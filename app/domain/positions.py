"""Positions: what was said of one thing in the order in which it was said, whatever way it came."""

MOST = 2**63 - 1


def position(stream_id: str) -> int:
    """A stream id as one number that orders events and fits 63 bits: ms << 20 | sequence."""
    ms, _, sequence = stream_id.partition("-")
    return min(position_at(int(ms)) | min(int(sequence), 2**20 - 1), MOST)


def position_at(ms: int) -> int:
    """The position of something that happened at that instant (ms since 1970) outside the stream."""
    return ms << 20


def accepted_at_ms(stream_id: str) -> int:
    """When an event was accepted, by Redis' clock, in ms since 1970."""
    return int(stream_id.partition("-")[0])
