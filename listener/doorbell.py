"""The Pub/Sub channel: it wakes the loop, and what others publish straight to it goes into the stream first.

It may lose messages and nothing breaks: the loop looks at the stream anyway, and only messages of others
depend on somebody listening, as Pub/Sub does.
"""

import threading
import time
from datetime import UTC, datetime

import redis
import structlog

from app.adapters.event_channel import EventChannel
from app.adapters.event_names import STREAM_ID_PREFIX
from app.adapters.event_publishing import Publisher
from app.domain.events import BARE_RECALCULATE, Event, EventType, decode_event
from app.errors import MalformedEvent, Unavailable
from app.observability import metrics
from app.observability.tracing import consumer_span, messaging

_logger = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0
SILENCE_S = 5.0
"""A subscription that is half-open looks like one on which nothing happens, except for our own heartbeat."""

SAME_MESSAGE_WINDOW_S = 5
"""Equal messages without an id within this time are one: every listener hears each, and not all at the same moment."""

SAME_REFUSAL_WINDOW_S = 60
"""Malformed ones are longer the same: more than one letter about them tells nobody anything."""


class Doorbell(threading.Thread):
    def __init__(
        self, channel: EventChannel, publisher: Publisher, ring: threading.Event, stopping: threading.Event
    ) -> None:
        super().__init__(name="doorbell", daemon=True)
        self._channel, self._publisher = channel, publisher
        self._ring, self._stopping = ring, stopping

    def run(self) -> None:
        """Listen until `stopping`; after a lost connection, again."""
        while not self._stopping.is_set():
            try:
                self._listen()
            except (Unavailable, redis.RedisError) as error:
                _logger.warning("the doorbell is out of reach", error=str(error))
                self._stopping.wait(1.0)

    def _listen(self) -> None:
        with self._channel.subscribe() as subscription:
            self._ring.set()  # something may have come while nobody listened
            heard_at = beat_at = time.monotonic()
            while not self._stopping.is_set():
                if time.monotonic() - heard_at > SILENCE_S:
                    raise Unavailable(f"no heartbeat for {SILENCE_S:g} s: the connection is taken for dead")
                if time.monotonic() - beat_at > HEARTBEAT_S:
                    beat_at = time.monotonic()
                    self._channel.ring_heartbeat()
                message = subscription.get_message(timeout=0.5)
                if message is None:
                    continue
                heard_at = time.monotonic()
                if self._channel.is_heartbeat(message):
                    continue
                if not message["data"].startswith(STREAM_ID_PREFIX):
                    take_over(self._channel, self._publisher, message["data"])
                self._ring.set()


def take_over(channel: EventChannel, publisher: Publisher, message: bytes) -> None:
    """Put somebody's message into the stream, once however many listeners do so; a malformed one is set
    aside with the reason. Raises `Unavailable`."""
    try:
        event = _event_of(channel, message)
    except MalformedEvent as error:
        channel.refuse(message, str(error), SAME_REFUSAL_WINDOW_S)
        return
    attributes = messaging("redis", "take over", "receive", "market_events")
    with consumer_span("take over market_events", [event.traceparent], attributes):
        _, new = publisher.publish(event)
    if new:
        metrics.events_published.labels(event.type.value, "channel").inc()


def _event_of(channel: EventChannel, message: bytes) -> Event:
    if message.strip(b'" \r\n\t') == BARE_RECALCULATE.encode():
        event_id = channel.name(message, SAME_MESSAGE_WINDOW_S)
        return Event(id=event_id, type=EventType.RECALCULATE, source="/channel", time=datetime.now(UTC))
    return decode_event(message)
