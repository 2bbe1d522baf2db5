"""What became of every event: what Redis itself knows of the stream, and a tally of what has left it.

The tally is kept in the script that acknowledges (`inbox`), so it is as true as the stream: accepted events are unread,
pending, applied, repeated or dead, whatever was killed or restarted. `before` is what had left the stream before there
was a tally.
"""

from typing import Any, NamedTuple

import redis

from app.adapters.event_names import Names, tally_key
from app.adapters.redis_clients import unavailable_if_down

SETTLED = ("applied", "repeated", "dead", "before")

# KEYS: stream, tally. ARGV: group. Whatever has left the stream and is in no tally was before it.
_BEGIN = """
if redis.call('HEXISTS', KEYS[2], 'before') == 1 then return 0 end
local function fields(list)
    local named = {}
    for i = 1, #list, 2 do named[list[i]] = list[i + 1] end
    return named
end
local before = fields(redis.call('XINFO', 'STREAM', KEYS[1]))['entries-added']
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local its = fields(group)
    if its['name'] == ARGV[1] then before = before - (its['lag'] or 0) - its['pending'] end
end
for _, count in ipairs(redis.call('HVALS', KEYS[2])) do before = before - count end
redis.call('HSET', KEYS[2], 'before', before)
return 1
"""


class Group(NamedTuple):
    """A consumer group: entries that it has not read yet, and those that it has not acknowledged."""

    unread: int
    pending: int


class Accounts(NamedTuple):
    """At one instant: entries in the stream, its groups, and what became of every event ever accepted, by `accepted`,
    `unread`, `pending` and `SETTLED`."""

    length: int
    groups: dict[str, Group]
    events: dict[str, int]


class EventAccounts:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._begin = client.register_script(_BEGIN)

    def begin(self) -> None:
        """Begin the tally, unless there is one. The stream and its group must exist."""
        with unavailable_if_down():
            self._begin(keys=[self._names.stream, tally_key(self._names)], args=[self._names.group])

    def read(self) -> Accounts:
        """All in one step, so that it adds up while events come and go."""
        with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(self._names.stream)
            pipeline.xinfo_groups(self._names.stream)
            pipeline.hgetall(tally_key(self._names))
            stream, groups, tally = pipeline.execute()
        by_name = {group["name"].decode(): Group(group["lag"] or 0, group["pending"]) for group in groups}
        own = by_name.get(self._names.group, Group(0, 0))
        settled: dict[str, Any] = {name.decode(): int(count) for name, count in tally.items()}
        return Accounts(
            stream["length"],
            by_name,
            {"accepted": stream["entries-added"], "unread": own.unread, "pending": own.pending}
            | {name: settled.get(name, 0) for name in SETTLED},
        )
