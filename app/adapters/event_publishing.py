"""How events get into the stream.

Publishing is one script, so an event is in the stream and its doorbell rung, or neither; and a second
publish of the same event id finds the first. The doorbell's message is the event itself with a `streamid`
attribute: subscribers can use it, and listeners see by it that the stream has the event already.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
import redis.asyncio
from opentelemetry.trace import SpanKind

from app.adapters.event_names import Names, seen_key
from app.adapters.redis_clients import unavailable_if_down
from app.domain.events import Event, encode_event
from app.observability.tracing import current_traceparent, step

_PUBLISH = """
local seen = redis.call('GET', KEYS[2])
if seen then return {seen, 0} end
local id = redis.call('XADD', KEYS[1], '*', 'event', ARGV[1])
redis.call('SET', KEYS[2], id, 'EX', ARGV[2])
redis.call('PUBLISH', ARGV[3], '{"streamid":"' .. id .. '",' .. string.sub(ARGV[1], 2))
return {id, 1}
"""


class AsyncPublisher:
    """For event loops."""

    def __init__(self, client: redis.asyncio.Redis, names: Names, remember_s: int) -> None:
        self._client, self._names, self._remember_s = client, names, remember_s
        self._publish = client.register_script(_PUBLISH)

    async def publish(self, event: Event) -> tuple[str, bool]:
        """Accept an event, as part of the current trace; its stream id, and whether it is new. Safe to repeat.
        Raises `Unavailable`."""
        with _publishing(event, self._names) as envelope, unavailable_if_down():
            stream_id, new = await self._publish(
                keys=[self._names.stream, seen_key(event.id)],
                args=[envelope, self._remember_s, self._names.channel],
            )
        return stream_id.decode(), bool(new)

    async def known(self, event_id: str) -> bool:
        with unavailable_if_down():
            return bool(await self._client.exists(seen_key(event_id)))

    async def ping(self) -> None:
        with unavailable_if_down():
            await self._client.ping()

    async def close(self) -> None:
        await self._client.aclose()


class Publisher:
    """For processes with one job at a time."""

    def __init__(self, client: redis.Redis, names: Names, remember_s: int) -> None:
        self._names, self._remember_s = names, remember_s
        self._publish = client.register_script(_PUBLISH)

    def publish(self, event: Event) -> tuple[str, bool]:
        """As `AsyncPublisher.publish`."""
        with _publishing(event, self._names) as envelope, unavailable_if_down():
            stream_id, new = self._publish(
                keys=[self._names.stream, seen_key(event.id)],
                args=[envelope, self._remember_s, self._names.channel],
            )
        return stream_id.decode(), bool(new)


@contextmanager
def _publishing(event: Event, names: Names) -> Iterator[bytes]:
    """The span of a publish, and the envelope that carries it on; outside any trace, the event's own."""
    attributes: dict[str, str | int] = {
        "messaging.system": "redis",
        "messaging.destination.name": names.stream,
        "messaging.operation.type": "send",
        "messaging.message.id": event.id,
    }
    with step(f"publish {names.channel}", SpanKind.PRODUCER, attributes):
        yield encode_event(event.model_copy(update={"traceparent": current_traceparent() or event.traceparent}))
