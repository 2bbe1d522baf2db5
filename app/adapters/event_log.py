"""The event stream as a listener sees it: read once, taken over from whoever died, never trimmed too far.

`event_publishing` puts events in; an entry is acknowledged when it leaves its `inbox`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import redis

from app.adapters.event_names import Names
from app.adapters.inbox import INBOXES, Filled, inbox_key
from app.adapters.inbox_scripts import RECEIVE
from app.adapters.locks import HINT_LIFE_S, hint_key
from app.adapters.redis_clients import unavailable_if_down
from app.adapters.stream_group import Lag, StreamGroup, entries_of
from app.domain.scopes import CATALOGUE, SCOPES
from app.domain.stream_entry import StreamEntry

LISTENER_KEYS = "listener:"
BEAT_BELIEVED_S = 15

_SCOPES = {scope.encode(): scope for scope in SCOPES}

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
    """One stream entry. `event` is empty where the entry has no such field; its scope is the catalogue's where it says
    none that there is."""

    stream_id: str
    scope: str
    event: bytes


class EventLog:
    """Every method raises `Unavailable` where Redis is away. `client` must not repeat commands by itself: entries whose
    reading was not answered are read, and only `unacknowledged` tells them again."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._group = StreamGroup(client, names.stream, names.group)
        self._forget = client.register_script(_FORGET)
        self._receive = client.register_script(RECEIVE)

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

    def receive(self, consumer: str, count: int, hint: str) -> tuple[list[Entry], dict[str, Filled]]:
        """New entries, at most `count`, which are in the inboxes of their scopes as `Inboxes.put` leaves them, in the
        same step; they are this consumer's until acknowledged. Does not wait."""
        with unavailable_if_down():
            entries, found = self._receive(
                keys=[self._names.stream, INBOXES],
                args=[
                    self._names.group,
                    consumer,
                    count,
                    hint,
                    int(HINT_LIFE_S * 1000),
                    inbox_key(""),
                    hint_key(""),
                    *SCOPES,
                ],
            )
        filled = {scope.decode(): Filled(waiting, bool(new)) for scope, new, waiting in found}
        read = [(stream_id, dict(zip(fields[::2], fields[1::2], strict=True))) for stream_id, fields in entries]
        return _events(entries_of(read)), filled

    def unacknowledged(self, consumer: str, count: int) -> Iterator[list[Entry]]:
        """What this consumer has read before, `count` at a time."""
        return map(_events, self._group.unacknowledged(consumer, count))

    def reclaim(self, consumer: str, idle_s: float, count: int) -> list[Entry]:
        """Entries that nobody has acknowledged for that long, now this consumer's. Goes on where it ended last time,
        and starts over at the end."""
        return _events(self._group.reclaim(consumer, idle_s, count))

    def backlog(self) -> Lag:
        """What is still to be applied."""
        return self._group.lag()

    def dead_letters(self) -> int:
        """How many there are."""
        with unavailable_if_down():
            return int(self._client.xlen(self._names.dead_letters))

    def trim(self) -> int:
        """Drop entries that every group has acknowledged; how many."""
        return self._group.trim()

    def ping(self) -> None:
        with unavailable_if_down():
            self._client.ping()


def _events(entries: Iterable[StreamEntry]) -> list[Entry]:
    return [
        Entry(
            entry.stream_id,
            _SCOPES.get(entry.fields.get(b"scope", b""), CATALOGUE),
            entry.fields.get(b"event", b""),
        )
        for entry in entries
    ]
