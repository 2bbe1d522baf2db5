"""Which inbox, and so which lock, an event belongs to."""

import zlib

from app.domain.events import Event, EventType

PARTITIONS = 8
"""Scopes that narrow events are spread over, by their subject: so many can be applied side by side."""

CATALOGUE = "catalogue"
"""The scope of events that concern many products, and of what is no event."""


def scope_of(event: Event) -> str:
    """One of a few scopes for a single product's events, one for all wide ones."""
    wide = event.subject == "*" or event.type in (EventType.RECALCULATE, EventType.POLICY_CHANGED)
    return CATALOGUE if wide else f"products:{zlib.crc32(event.subject.encode()) % PARTITIONS}"
