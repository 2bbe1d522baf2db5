"""A consumer group of a stream: read once, taken over from whoever died, counted when it leaves. The stream is never
trimmed too far."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import redis

from app.adapters.redis_clients import unavailable_if_down
from app.domain.account import Account
from app.domain.stream_entry import Setback, SinkLetter, StreamEntry

# The tally begins with the group. What had left the stream before, nobody can deliver any more. KEYS: stream, tally.
# ARGV: group.
_ENSURE = """
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err then
    if string.find(made.err, '^BUSYGROUP') then return 0 end
    return made
end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
    if stream[i] == 'entries-added' then
        redis.call('HSET', KEYS[2], 'before', stream[i + 1] - redis.call('XLEN', KEYS[1]))
    end
end
return 1
"""

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

# KEYS: stream, tally, setbacks. ARGV: group, then id and records of each entry. What somebody else acknowledged is
# counted by them.
_SETTLE = """
local entries, records = 0, 0
for i = 2, #ARGV, 2 do
    if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
        entries = entries + 1
        records = records + ARGV[i + 1]
    end
    redis.call('HDEL', KEYS[3], ARGV[i])
end
redis.call('HINCRBY', KEYS[2], 'delivered', entries)
redis.call('HINCRBY', KEYS[2], 'records', records)
return entries
"""

# KEYS: stream, tally, setbacks, dead letters. ARGV: group, id, then the letter's fields. The letter is written before
# the entry goes: an error between the two, which Redis does not undo, must not lose it.
_BURY = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then return 0 end
redis.call('XADD', KEYS[4], '*', unpack(ARGV, 3))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[2], 'dead', 1)
return 1
"""

# KEYS: dead letters, tally. ARGV: letter, records; -1 where it is thrown away, and stays counted as dead.
_REMOVE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if tonumber(ARGV[2]) >= 0 then
    redis.call('HINCRBY', KEYS[2], 'dead', -1)
    redis.call('HINCRBY', KEYS[2], 'delivered', 1)
    redis.call('HINCRBY', KEYS[2], 'records', ARGV[2])
end
return 1
"""

_ENTRY = b"entry:"
"""How the names of the fields of a letter begin that were its entry's."""

_decode_setback = msgspec.json.Decoder(Setback).decode


class Lag(NamedTuple):
    """Entries that nobody has read yet, that were read but not acknowledged, and the oldest one's age in seconds."""

    unread: int
    pending: int
    oldest_s: float


class StreamGroup:
    """One sink's group of a stream, with its dead letters (`dead_letters` is their stream's name) and its tally, which
    is kept in the scripts that acknowledge.

    Every method raises `Unavailable` where Redis is away. `client` must not repeat commands by itself: entries whose
    reading was not answered are read, and only `unacknowledged` tells them again.
    """

    def __init__(self, client: redis.Redis, stream: str, group: str) -> None:
        self._client, self._stream, self._name = client, stream, group
        self.dead_letters = f"{stream}:{group}:dead"
        self._tally, self._setbacks = f"{stream}:{group}:tally", f"{stream}:{group}:setbacks"
        self._reclaimed_up_to: Any = "0-0"
        self._ensure = client.register_script(_ENSURE)
        self._trim = client.register_script(_TRIM)
        self._settle = client.register_script(_SETTLE)
        self._bury = client.register_script(_BURY)
        self._remove = client.register_script(_REMOVE)

    def ensure(self) -> None:
        """Create the stream and its group, which starts at the first entry, unless they exist."""
        with unavailable_if_down():
            self._ensure(keys=[self._stream, self._tally], args=[self._name])

    def read(self, consumer: str, count: int) -> list[StreamEntry]:
        """New entries, at most `count`; they are this consumer's until acknowledged. Does not wait."""
        return self._read(consumer, ">", count)

    def unacknowledged(self, consumer: str, count: int) -> Iterator[list[StreamEntry]]:
        """What this consumer has read before, `count` at a time."""
        last = "0"
        while entries := self._read(consumer, last, count):
            yield entries
            last = entries[-1].stream_id

    def _read(self, consumer: str, after: str, count: int) -> list[StreamEntry]:
        with unavailable_if_down():
            answer: Any = self._client.xreadgroup(self._name, consumer, {self._stream: after}, count=count)
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else (entries for _, entries in answer)
        return [entry for entries in streams for entry in entries_of(entries)]

    def reclaim(self, consumer: str, idle_s: float, count: int) -> list[StreamEntry]:
        """Entries that nobody has acknowledged for that long, now this consumer's. Goes on where it ended last time,
        and starts over at the end."""
        with unavailable_if_down():
            answer: Any = self._client.xautoclaim(
                self._stream,
                self._name,
                consumer,
                min_idle_time=int(idle_s * 1000),
                start_id=self._reclaimed_up_to,
                count=count,
            )
        self._reclaimed_up_to = answer[0]
        return entries_of(answer[1])

    def settle(self, records: Mapping[str, int]) -> int:
        """Acknowledge entries that were written, by stream id with the number of their records, and count them; how
        many nobody had acknowledged before."""
        arguments: list[Any] = [value for pair in records.items() for value in pair]
        with unavailable_if_down():
            return int(
                self._settle(
                    keys=[self._stream, self._tally, self._setbacks],
                    args=[self._name, *arguments],
                )
            )

    def bury(self, entry: StreamEntry, reason: str, setback: Setback) -> bool:
        """Make a dead letter of an entry and acknowledge it, in one step; whether it was still there."""
        about = {"stream_id": entry.stream_id, "reason": reason, "setback": msgspec.json.encode(setback)}
        letter: list[Any] = [value for pair in about.items() for value in pair]
        letter += [value for name, content in entry.fields.items() for value in (_ENTRY + name, content)]
        with unavailable_if_down():
            return bool(
                self._bury(
                    keys=[self._stream, self._tally, self._setbacks, self.dead_letters],
                    args=[self._name, entry.stream_id, *letter],
                )
            )

    def setback(self, stream_id: str) -> Setback | None:
        """What went wrong with an entry so far."""
        with unavailable_if_down():
            known: Any = self._client.hget(self._setbacks, stream_id)
        return _decode_setback(known) if known is not None else None

    def note(self, stream_id: str, setback: Setback | None) -> None:
        """Remember that, or that nothing did."""
        with unavailable_if_down():
            if setback is None:
                self._client.hdel(self._setbacks, stream_id)
            else:
                self._client.hset(self._setbacks, stream_id, msgspec.json.encode(setback))

    def letters(self, after: str = "", count: int = 100) -> list[SinkLetter]:
        """The oldest dead letters after that one."""
        with unavailable_if_down():
            answer: Any = self._client.xrange(self.dead_letters, f"({after}" if after else "-", "+", count)
        return [_letter(letter_id.decode(), fields) for letter_id, fields in answer]

    def revive(self, letter: SinkLetter, records: int) -> bool:
        """Put a letter away that was delivered after all; whether it was still there."""
        return self._put_away(letter, records)

    def discard(self, letter: SinkLetter) -> bool:
        """Throw a letter away; whether it was still there."""
        return self._put_away(letter, -1)

    def _put_away(self, letter: SinkLetter, records: int) -> bool:
        with unavailable_if_down():
            return bool(self._remove(keys=[self.dead_letters, self._tally], args=[letter.letter_id, records]))

    def account(self) -> Account:
        """Of all entries that the stream ever accepted, or that it still had when this group began: all in one step,
        so that it adds up while entries come and go."""
        with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(self._stream)
            pipeline.xinfo_groups(self._stream)
            pipeline.hgetall(self._tally)
            stream, groups, tally = pipeline.execute()
        (own,) = [group for group in groups if group["name"] == self._name.encode()]
        counts = {name.decode(): int(count) for name, count in tally.items()}
        return Account(
            accepted=stream["entries-added"] - counts.get("before", 0),
            delivered=counts.get("delivered", 0),
            dead=counts.get("dead", 0),
            pending=own["pending"] + (own["lag"] or 0),
        )

    def records(self) -> int:
        """How many records this group has delivered."""
        with unavailable_if_down():
            count: Any = self._client.hget(self._tally, "records")
        return int(count or 0)

    def lag(self) -> Lag:
        """What is still to be delivered."""
        with unavailable_if_down(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_groups(self._stream)
            pipeline.xpending(self._stream, self._name)
            pipeline.time()
            groups, pending, (seconds, _) = pipeline.execute()
            (group,) = [group for group in groups if group["name"] == self._name.encode()]
            unread: Any = self._client.xrange(self._stream, f"({group['last-delivered-id'].decode()}", count=1)
        oldest = [pending["min"]] if pending["pending"] else []
        oldest += [stream_id for stream_id, _ in unread]
        since_ms = min((int(stream_id.partition(b"-")[0]) for stream_id in oldest), default=seconds * 1000)
        lag = group["lag"]  # None where entries were deleted by hand
        return Lag(len(unread) if lag is None else lag, pending["pending"], max(0.0, seconds - since_ms / 1000))

    def trim(self) -> int:
        """Drop entries that every group of the stream has acknowledged; how many."""
        with unavailable_if_down():
            return int(self._trim(keys=[self._stream], args=[]))


def entries_of(entries: Iterable[Any]) -> list[StreamEntry]:
    """Of an entry that was deleted by hand, only its id is left."""
    return [StreamEntry(stream_id.decode(), fields or {}) for stream_id, fields in entries]


def _letter(letter_id: str, fields: Mapping[bytes, bytes]) -> SinkLetter:
    entry = {name.removeprefix(_ENTRY): value for name, value in fields.items() if name.startswith(_ENTRY)}
    return SinkLetter(
        letter_id,
        StreamEntry(fields[b"stream_id"].decode(), entry),
        fields[b"reason"].decode(),
        _decode_setback(fields[b"setback"]),
    )
