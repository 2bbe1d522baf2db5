"""How events get into the stream.

Publishing is one script, so all events of a call are in the stream and the doorbell rung, or none; and a second
publish of the same event id finds the first. The doorbell's message is the event itself with a `streamid`
attribute: subscribers can use it, and listeners see by it that the stream has the event already. Several events ring
once, with the first and the last place: a message each would overflow the subscribers' buffers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import randrange
from typing import Any, NamedTuple

import redis
import redis.asyncio
from opentelemetry.trace import SpanKind

from app.adapters.event_names import Names, seen_key
from app.adapters.redis_clients import unavailable_if_down
from app.domain.events import Event, EventType, encode_event
from app.domain.scopes import scope_of
from app.errors import Overloaded
from app.observability import metrics
from app.observability.tracing import current_traceparent, messaging, step

MAX_EVENTS = 10_000
"""Most events that one call may publish: Redis does nothing else meanwhile, for 5 to 9 µs per event of 300 bytes."""

DRAINED_PER_S = 1_000
"""Events that are surely applied in a second: what a client that finds the backlog full is told to wait by."""

RETRY_S, MAX_RETRY_S = 5, 60

_NO_LIMIT = 0

# The backlog is what the slowest group has still to read or to acknowledge.
_PUBLISH = """
local stream, remember_s, limit, channel = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local call, first_event = redis.call, 4

local function backlog()
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err or #groups == 0 then return call('XLEN', stream) end
    local most = 0
    for _, group in ipairs(groups) do
        local fields = {}
        for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
        local behind = fields['lag'] and fields['lag'] + fields['pending'] or call('XLEN', stream)
        if behind > most then most = behind end
    end
    return most
end

local known, first, last = {}, nil, nil
for i = 2, #KEYS do
    local place = call('GET', KEYS[i])
    if place then
        known[#known + 1] = i - 2
        first, last = first or place, place
    end
end
if #known == #KEYS - 1 then return {known, first, last} end
if limit > 0 then
    local waiting = backlog()
    if waiting >= limit then return {waiting} end
end

local next_known = 1
first, last = nil, nil
for i = 2, #KEYS do
    if known[next_known] == i - 2 then
        next_known = next_known + 1
    else
        local at = first_event + 2 * (i - 2)
        last = call('XADD', stream, '*', 'scope', ARGV[at], 'event', ARGV[at + 1])
        first = first or last
        call('SET', KEYS[i], last, 'EX', remember_s)
    end
end
if #KEYS == 2 then
    call('PUBLISH', channel, '{"streamid":"' .. last .. '",' .. string.sub(ARGV[first_event + 1], 2))
else
    local ring = '{"streamid":"%s","laststreamid":"%s","events":%d}'
    call('PUBLISH', channel, string.format(ring, first, last, #KEYS - 1 - #known))
end
return {known, first, last}
"""


class Encoded(NamedTuple):
    """An event on its way in: what it is about, and its envelope as JSON, without a traceparent."""

    event_id: str
    type: EventType
    subject: str
    envelope: bytes


class AsyncPublisher:
    """For event loops. Everything may be repeated, and raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, names: Names, remember_s: int, max_backlog: int) -> None:
        """Ids are remembered for `remember_s` seconds; from a backlog of `max_backlog` events on, new ones are
        refused."""
        self._client, self._names, self._remember_s, self._max_backlog = client, names, remember_s, max_backlog
        self._publish = client.register_script(_PUBLISH)

    async def accept(self, events: Sequence[Encoded]) -> set[int]:
        """Take new events in, all or none, as part of the current trace; the indexes of those that were known.
        `MAX_EVENTS` at most, and no id twice. Raises `Overloaded` where the backlog is full and one is new."""
        with _publishing(self._names, [event.event_id for event in events]) as traceparent, unavailable_if_down():
            answer = await self._publish(
                keys=[self._names.stream, *(seen_key(event.event_id) for event in events)],
                args=[
                    *_arguments(self._names, self._remember_s, self._max_backlog),
                    *(word for event in events for word in _words(event, traceparent)),
                ],
            )
        if len(answer) == 1:
            metrics.events_refused.inc(len(events))
            raise _overloaded(answer[0], self._max_backlog)
        return set(answer[0])

    async def publish(self, event: Event) -> tuple[str, bool]:
        """Publish the event of a change that was made, whatever the backlog, as part of the current trace; its stream
        id, and whether it is new."""
        with _publishing(self._names, [event.id]) as traceparent, unavailable_if_down():
            place = _place(await self._publish(**_single(self._names, self._remember_s, event, traceparent)))
        metrics.events_published.labels(event.type.value, "rules").inc(place[1])
        return place

    async def place(self, event_id: str) -> str | None:
        """The stream id of an event, as long as it is remembered."""
        with unavailable_if_down():
            stream_id: Any = await self._client.get(seen_key(event_id))
        return None if stream_id is None else stream_id.decode()

    async def known(self, event_id: str) -> bool:
        return await self.place(event_id) is not None

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
        with _publishing(self._names, [event.id]) as traceparent, unavailable_if_down():
            return _place(self._publish(**_single(self._names, self._remember_s, event, traceparent)))


@contextmanager
def _publishing(names: Names, event_ids: Sequence[str]) -> Iterator[str | None]:
    """The span of a publish, and the traceparent that carries it on; None outside any trace."""
    attributes = messaging("redis", "publish", "send", names.stream)
    if len(event_ids) == 1:
        attributes["messaging.message.id"] = event_ids[0]
    else:
        attributes["messaging.batch.message_count"] = len(event_ids)
    with step(f"publish {names.channel}", SpanKind.PRODUCER, attributes):
        yield current_traceparent()


def _arguments(names: Names, remember_s: int, max_backlog: int) -> list[str | int]:
    return [remember_s, max_backlog, names.channel]


def _single(names: Names, remember_s: int, event: Event, traceparent: str | None) -> dict[str, Any]:
    envelope = encode_event(event.model_copy(update={"traceparent": traceparent or event.traceparent}))
    return {
        "keys": [names.stream, seen_key(event.id)],
        "args": [*_arguments(names, remember_s, _NO_LIMIT), scope_of(event.type, event.subject), envelope],
    }


def _words(event: Encoded, traceparent: str | None) -> tuple[str, bytes]:
    """What the stream has of an event: its scope and its envelope."""
    return scope_of(event.type, event.subject), _traced(event.envelope, traceparent)


def _traced(envelope: bytes, traceparent: str | None) -> bytes:
    return envelope if traceparent is None else b'%b,"traceparent":"%b"}' % (envelope[:-1], traceparent.encode())


def _place(answer: Any) -> tuple[str, bool]:
    """Of one event: its stream id, and whether it is new."""
    known, stream_id, _ = answer
    return stream_id.decode(), not known


def _overloaded(backlog: int, limit: int) -> Overloaded:
    """Come again when what is too much may have been applied; not all at the same moment."""
    retry_after_s = min(RETRY_S + (backlog - limit) // DRAINED_PER_S, MAX_RETRY_S) + randrange(RETRY_S)  # noqa: S311
    return Overloaded(f"{backlog:,} events wait to be applied, and {limit:,} are the limit", retry_after_s)
