"""The event stream: how events are read, acknowledged and, when hopeless, set aside. `event_publishing` puts
them in."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from uuid import uuid4

import redis

from app.adapters.event_names import Names
from app.adapters.event_publishing import Publisher
from app.adapters.redis_clients import unavailable_if_down
from app.domain.events import Event
from app.errors import PricingError, Unavailable

LISTENER_KEYS = "listener:"
BEAT_BELIEVED_S = 15

# Nothing is dropped that any group has still to read or to acknowledge.
_TRIM = """
local keep
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    local oldest = fields['last-delivered-id']
    local pending = redis.call('XPENDING', KEYS[1], fields['name'])
    if pending[1] > 0 then oldest = pending[2] end
    local ms, seq = string.match(oldest, '(%d+)-(%d+)')
    local at = {tonumber(ms), tonumber(seq), oldest}
    if not keep or at[1] < keep[1] or (at[1] == keep[1] and at[2] < keep[2]) then keep = at end
end
if not keep then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', keep[3])
"""


# Looking and removing are one step: a consumer that wakes in between would lose what it then reads.
_FORGET = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local fields = {}
    for i = 1, #consumer, 2 do fields[consumer[i]] = consumer[i + 1] end
    if fields['pending'] == 0 and redis.call('EXISTS', ARGV[2] .. fields['name']) == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fields['name'])
    end
end
"""


class Entry(NamedTuple):
    """One stream entry. `event` is None where the entry has no such field."""

    stream_id: str
    event: bytes | None


def position(stream_id: str) -> int:
    """A stream id as one number that orders events and fits 63 bits: ms << 20 | sequence."""
    ms, _, sequence = stream_id.partition("-")
    return position_at(int(ms)) | min(int(sequence), 2**20 - 1)


def position_at(ms: int) -> int:
    """The position of something that happened at that instant (ms since 1970) outside the stream."""
    return ms << 20


class EventLog:
    """The listeners' and workers' side. Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names, remember_s: int) -> None:
        self._client, self._names = client, names
        self._attempts = f"{names.stream}:attempts"
        self._publisher = Publisher(client, names, remember_s)
        self._trim = client.register_script(_TRIM)
        self._forget = client.register_script(_FORGET)

    def publish(self, event: Event) -> tuple[str, bool]:
        """As `Publisher.publish`."""
        return self._publisher.publish(event)

    def ensure_group(self) -> None:
        """Create the stream and its group, which starts at the first entry, unless they exist."""
        with unavailable_if_down():
            try:
                self._client.xgroup_create(self._names.stream, self._names.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def beat(self, consumer: str) -> None:
        """Say that this consumer is there; it is believed for `BEAT_BELIEVED_S`."""
        with unavailable_if_down():
            self._client.set(f"{LISTENER_KEYS}{consumer}", 1, ex=BEAT_BELIEVED_S)

    def forget_consumers(self) -> None:
        """Remove consumers that are gone and hold nothing: every listener that ever ran leaves one."""
        with unavailable_if_down():
            self._forget(keys=[self._names.stream], args=[self._names.group, LISTENER_KEYS])

    def read(self, consumer: str, count: int) -> list[Entry]:
        """New entries, at most `count`; they are this consumer's until acknowledged. Does not wait."""
        with unavailable_if_down():
            answer: Any = self._client.xreadgroup(self._names.group, consumer, {self._names.stream: ">"}, count=count)
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else (entries for _, entries in answer)
        return [entry for entries in streams for entry in _entries(entries)]

    def reclaim(self, consumer: str, idle_s: float, count: int) -> list[tuple[Entry, int]]:
        """Entries that nobody has acknowledged for that long, now this consumer's, and how many attempts at
        each have failed."""
        with unavailable_if_down():
            answer: Any = self._client.xautoclaim(
                self._names.stream, self._names.group, consumer, min_idle_time=int(idle_s * 1000), count=count
            )
            entries = _entries(answer[1])
            if not entries:
                return []
            failed: Any = self._client.hmget(self._attempts, [entry.stream_id for entry in entries])
        return [(entry, int(times or 0)) for entry, times in zip(entries, failed, strict=True)]

    @contextmanager
    def attempt(self, stream_ids: Sequence[str]) -> Iterator[None]:
        """Count an attempt at these entries, unless it ends well or is to be repeated for reasons that are not
        theirs. What stays counted are bugs and the deaths of processes."""
        self._count(stream_ids, 1)
        try:
            yield
        except (PricingError, ConnectionError, TimeoutError):
            with suppress(Unavailable):
                self._count(stream_ids, -1)
            raise

    def _count(self, stream_ids: Sequence[str], by: int) -> None:
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for stream_id in stream_ids:
                pipeline.hincrby(self._attempts, stream_id, by)
            pipeline.execute()

    def acknowledge(self, stream_ids: Sequence[str]) -> None:
        if stream_ids:
            with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
                pipeline.xack(self._names.stream, self._names.group, *stream_ids)
                pipeline.hdel(self._attempts, *stream_ids)
                pipeline.execute()

    def dead_letter(self, entry: Entry, reason: str, attempts: int) -> None:
        """Set an entry aside with the reason, and acknowledge it, in one step."""
        letter: dict[Any, Any] = {
            "event": entry.event or b"",
            "stream_id": entry.stream_id,
            "reason": reason,
            "attempts": attempts,
        }
        with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.xadd(self._names.dead_letters, letter)
            pipeline.xack(self._names.stream, self._names.group, entry.stream_id)
            pipeline.hdel(self._attempts, entry.stream_id)
            pipeline.execute()

    def refuse(self, message: bytes, reason: str) -> None:
        """Set aside a message that never was in the stream."""
        letter: dict[Any, Any] = {"event": message, "stream_id": "", "reason": reason, "attempts": 1}
        with unavailable_if_down():
            self._client.xadd(self._names.dead_letters, letter)

    def hear(self, message: bytes, window_s: int) -> tuple[str, bool]:
        """An id for a message that came without the stream, the same for all who hear it within the window
        (seconds), and whether this is the first of them."""
        key, own_id = f"heard:{hashlib.sha256(message).hexdigest()}", str(uuid4())
        with unavailable_if_down():
            earlier: Any = self._client.set(key, own_id, nx=True, get=True, ex=window_s)
        return (own_id, True) if earlier is None else (earlier.decode(), False)

    def trim(self) -> int:
        """Drop entries that every group has acknowledged; how many."""
        with unavailable_if_down():
            return int(self._trim(keys=[self._names.stream], args=[]))

    def doorbell(self) -> redis.client.PubSub:
        """A subscription to the channel, on a connection of its own."""
        subscription: redis.client.PubSub = self._client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        with unavailable_if_down():
            subscription.subscribe(self._names.channel, self._heartbeats)
        return subscription

    def ring_heartbeat(self) -> None:
        """Something for every doorbell to hear, on a channel beside that of the events."""
        with unavailable_if_down():
            self._client.publish(self._heartbeats, b"")

    def is_heartbeat(self, message: Mapping[str, Any]) -> bool:
        return bool(message["channel"] == self._heartbeats.encode())

    @property
    def _heartbeats(self) -> str:
        return f"{self._names.channel}:heartbeat"

    def ping(self) -> None:
        with unavailable_if_down():
            self._client.ping()


def _entries(entries: Iterable[Any]) -> list[Entry]:
    return [Entry(stream_id.decode(), fields.get(b"event")) for stream_id, fields in entries if fields is not None]
