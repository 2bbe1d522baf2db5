"""The event stream as a listener sees it: read once, taken over from whoever died, never trimmed too far.

`event_publishing` puts events in; an entry is acknowledged when it leaves its `inbox`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import redis

from app.adapters.event_names import Names
from app.adapters.redis_clients import unavailable_if_down

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
    """One stream entry. `event` is empty where the entry has no such field."""

    stream_id: str
    event: bytes


class Backlog(NamedTuple):
    """Entries that nobody has read yet, that were read but not acknowledged, and the oldest one's age in seconds."""

    unread: int
    pending: int
    oldest_s: float


class EventLog:
    """Every method raises `Unavailable` where Redis is away. `client` must not repeat commands by itself: entries whose
    reading was not answered are read, and only `unacknowledged` tells them again."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._reclaimed_up_to: Any = "0-0"
        self._trim = client.register_script(_TRIM)
        self._forget = client.register_script(_FORGET)

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
        return self._read(consumer, ">", count)

    def unacknowledged(self, consumer: str, count: int) -> Iterator[list[Entry]]:
        """What this consumer has read before, `count` at a time."""
        last = "0"
        while entries := self._read(consumer, last, count):
            yield entries
            last = entries[-1].stream_id

    def _read(self, consumer: str, after: str, count: int) -> list[Entry]:
        with unavailable_if_down():
            answer: Any = self._client.xreadgroup(self._names.group, consumer, {self._names.stream: after}, count=count)
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else (entries for _, entries in answer)
        return [entry for entries in streams for entry in _entries(entries)]

    def reclaim(self, consumer: str, idle_s: float, count: int) -> list[Entry]:
        """Entries that nobody has acknowledged for that long, now this consumer's. Goes on where it ended last time,
        and starts over at the end."""
        with unavailable_if_down():
            answer: Any = self._client.xautoclaim(
                self._names.stream,
                self._names.group,
                consumer,
                min_idle_time=int(idle_s * 1000),
                start_id=self._reclaimed_up_to,
                count=count,
            )
        self._reclaimed_up_to = answer[0]
        return _entries(answer[1])

    def backlog(self) -> Backlog:
        """What is still to be applied."""
        with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_groups(self._names.stream)
            pipeline.xpending(self._names.stream, self._names.group)
            pipeline.time()
            groups, pending, (seconds, _) = pipeline.execute()
            (group,) = [group for group in groups if group["name"] == self._names.group.encode()]
            unread: Any = self._client.xrange(self._names.stream, f"({group['last-delivered-id'].decode()}", count=1)
        oldest = [pending["min"]] if pending["pending"] else []
        oldest += [stream_id for stream_id, _ in unread]
        since_ms = min((int(stream_id.partition(b"-")[0]) for stream_id in oldest), default=seconds * 1000)
        lag = group["lag"]  # None where entries were deleted by hand
        return Backlog(len(unread) if lag is None else lag, pending["pending"], max(0.0, seconds - since_ms / 1000))

    def dead_letters(self) -> int:
        """How many there are."""
        with unavailable_if_down():
            return int(self._client.xlen(self._names.dead_letters))

    def trim(self) -> int:
        """Drop entries that every group has acknowledged; how many."""
        with unavailable_if_down():
            return int(self._trim(keys=[self._names.stream], args=[]))

    def ping(self) -> None:
        with unavailable_if_down():
            self._client.ping()


def _entries(entries: Iterable[Any]) -> list[Entry]:
    """Of an entry that was deleted by hand, only its id is left."""
    return [Entry(stream_id.decode(), (fields or {}).get(b"event", b"")) for stream_id, fields in entries]
