"""Which inbox, and so which lock, an event belongs to: its entry in the stream says so from the beginning."""

import zlib

from app.domain.events import EventType

PARTITIONS = 8
"""Scopes that narrow events are spread over, by their subject: so many can be applied side by side."""

CATALOGUE = "catalogue"
"""The scope of events that concern many products, and of entries that say none of the `SCOPES`."""

SCOPES = (CATALOGUE, *(f"products:{number}" for number in range(PARTITIONS)))


def scope_of(type_: EventType, subject: str) -> str:
    """One of a few scopes for a single product's events, one for all wide ones."""
    wide = subject == "*" or type_ in (EventType.RECALCULATE, EventType.POLICY_CHANGED)
    return CATALOGUE if wide else f"products:{zlib.crc32(subject.encode()) % PARTITIONS}"
