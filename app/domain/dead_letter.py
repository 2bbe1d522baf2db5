"""Dead letters: events that nobody could apply, with the reason, waiting for somebody to decide."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from app.domain.events import Event, EventType, decode_event
from app.errors import MalformedEvent

MAX_TEXT = 10_000
"""So many characters of a message that is no event are shown."""


@dataclass(frozen=True)
class DeadLetter:
    """`event` is the message as it came; `attempts` may be 0 where nobody counted. Errors and ids are empty where they
    are unknown, times (ms since 1970) are 0."""

    letter_id: str
    event: bytes
    stream_id: str
    reason: str
    attempts: int
    first_error: str = ""
    first_failed_at: int = 0
    last_error: str = ""
    last_failed_at: int = 0
    trace_id: str = ""

    @property
    def place(self) -> tuple[int, ...]:
        """Orders letters as their stream does."""
        return tuple(map(int, self.letter_id.split("-")))

    @property
    def dead_since(self) -> int:
        """When it was set aside, in ms since 1970."""
        return self.place[0]

    @cached_property
    def decoded(self) -> Event | MalformedEvent:
        """The event, or why it is none."""
        try:
            return decode_event(self.event)
        except MalformedEvent as error:
            return error

    def summary(self) -> dict[str, Any]:
        """All but the event itself, for people and JSON."""
        event = self.decoded if isinstance(self.decoded, Event) else None
        return {
            "letter_id": self.letter_id,
            "dead_since": instant(self.dead_since),
            "event_id": event and event.id,
            "type": event and event.type,
            "subject": event and event.subject,
            "location": event and event.location,
            "replayable": event is not None,
            "reason": self.reason,
            "attempts": self.attempts,
            "first_error": self.first_error or None,
            "first_failed_at": instant(self.first_failed_at),
            "last_error": self.last_error or None,
            "last_failed_at": instant(self.last_failed_at),
            "trace_id": self.trace_id or None,
            "stream_id": self.stream_id or None,
        }

    def whole(self) -> dict[str, Any]:
        """With the event, or with the beginning of the message that is none."""
        replayable = isinstance(self.decoded, Event)
        return self.summary() | {
            "event": msgspec.Raw(self.event) if replayable else None,
            "message": None if replayable else self.event.decode(errors="replace")[:MAX_TEXT],
        }


_LAST_MS = 253_402_300_799_000
"""The end of the year 9999."""


class Replayed(NamedTuple):
    """An event that was put into the stream again, and its new place there."""

    letter_id: str
    event_id: str
    stream_id: str


class Wait(NamedTuple):
    """Too many were replayed in the last second: the next may be in so many ms."""

    ms: int

    @property
    def seconds(self) -> int:
        """In whole seconds, one at least."""
        return max(1, -(-self.ms // 1000))


@dataclass(frozen=True)
class Wanted:
    """Which letters are meant: those with `reason` in their reason (in any case), about events of `type`, set aside
    from `since` on and before `until` (ms since 1970)."""

    reason: str = ""
    type: EventType | None = None
    since: int = 0
    until: int | None = None

    def has(self, letter: DeadLetter) -> bool:
        if self.reason.casefold() not in letter.reason.casefold():
            return False
        if self.type is not None and not (isinstance(letter.decoded, Event) and letter.decoded.type is self.type):
            return False
        return letter.dead_since >= self.since and self.reaches(letter)

    def reaches(self, letter: DeadLetter) -> bool:
        """Whether it, or one after it, may be meant."""
        return self.until is None or letter.dead_since < self.until


def instant(ms: int) -> datetime | None:
    """Of ms since 1970; None for 0 and for what no calendar has."""
    return datetime.fromtimestamp(ms / 1000, UTC) if 0 < ms <= _LAST_MS else None
