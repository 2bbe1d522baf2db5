"""Inboxes: the stream entries that wait to be applied, one sorted set per scope, in the order of the stream.

An entry stays in its inbox until it is acknowledged, so whoever next holds the scope's lock finds what a dead holder
had taken. Only a scope's holder takes from its inbox or settles; putting an entry in twice changes nothing.

Entries of a failed batch become suspects: they are kept apart with the time of their next try, and are tried in
ever smaller company, in the end alone, so that a poisonous one takes no others with it. `trying:<scope>` names the
batch that is being applied; a holder that finds it knows that the last one died with that batch in hand.
"""

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import redis

from app.adapters.event_log import position
from app.adapters.event_names import Names
from app.adapters.redis_clients import unavailable_if_down
from app.services.ports import Failure, Letter, Waiting

_TOGETHER = (32, 4, 1)
"""How many suspects are tried at once after one failed attempt, two, and more."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0

# KEYS: inbox, suspects, inboxes. ARGV: scope, then score and id of each entry.
_PUT = """
for i = 2, #ARGV, 2 do
    if not redis.call('ZSCORE', KEYS[2], ARGV[i + 1]) then redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('SADD', KEYS[3], ARGV[1])
return redis.call('ZCARD', KEYS[1])
"""

# KEYS: inbox, suspects, trying, failures, stream. ARGV: most entries, sizes of groups of suspects as JSON.
_TAKE = """
local ids = redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)
if #ids == 0 then
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local sizes = cjson.decode(ARGV[2])
    local attempts
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, sizes[1])) do
        local failure = redis.call('HGET', KEYS[4], id)
        local its = failure and cjson.decode(failure)['attempts'] or 1
        attempts = attempts or its
        if its == attempts then ids[#ids + 1] = id end
        if #ids >= sizes[math.min(attempts, #sizes)] then break end
    end
end
if #ids == 0 then return {} end
redis.call('SET', KEYS[3], table.concat(ids, ' '))
local taken = {}
for _, id in ipairs(ids) do
    local entry = redis.call('XRANGE', KEYS[5], id, id)[1]
    local event = ''
    for i = 1, entry and #entry[2] or 0, 2 do
        if entry[2][i] == 'event' then event = entry[2][i + 1] end
    end
    taken[#taken + 1] = {id, event, redis.call('HGET', KEYS[4], id)}
end
return taken
"""

# KEYS: inbox, suspects, trying, failures, stream, dead letters, index. ARGV: group, done ids as JSON, then per
# letter: stream id, event id, and the number of its field names and values, which follow.
_SETTLE = """
local function drop(id)
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[4], id)
    return redis.call('XACK', KEYS[5], ARGV[1], id)
end
for _, id in ipairs(cjson.decode(ARGV[2])) do drop(id) end
local i = 3
local letters = 0
while i <= #ARGV do
    local count = tonumber(ARGV[i + 2])
    if drop(ARGV[i]) == 1 then
        local letter = redis.call('XADD', KEYS[6], '*', unpack(ARGV, i + 3, i + 2 + count))
        if ARGV[i + 1] ~= '' then redis.call('HSET', KEYS[7], ARGV[i + 1], letter) end
        letters = letters + 1
    end
    i = i + 3 + count
end
redis.call('DEL', KEYS[3])
return letters
"""


class Inboxes:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._put = client.register_script(_PUT)
        self._take = client.register_script(_TAKE)
        self._settle = client.register_script(_SETTLE)

    def put(self, entries: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Put stream ids into the inboxes of their scopes, in one round trip; how many wait in each now."""
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for scope, stream_ids in entries.items():
                scored = (part for stream_id in stream_ids for part in (_score(stream_id), stream_id))
                self._put(keys=[*_keys(scope)[:2], "inboxes"], args=[scope, *scored], client=pipeline)
            waiting: list[int] = pipeline.execute()
        return dict(zip(entries, waiting, strict=True))

    def waiting(self) -> dict[str, int]:
        """Scopes in whose inbox something is to be done now, and how much."""
        with unavailable_if_down():
            names: Any = self._client.smembers("inboxes")
            scopes = sorted(name.decode() for name in names)
            now = _now_ms(self._client)
            with self._client.pipeline(transaction=False) as pipeline:
                for scope in scopes:
                    inbox, suspects, *_ = _keys(scope)
                    pipeline.zcard(inbox)
                    pipeline.zcount(suspects, "-inf", now)
                counts: list[int] = pipeline.execute()
        return {
            scope: fresh + due
            for scope, fresh, due in zip(scopes, counts[::2], counts[1::2], strict=True)
            if fresh + due
        }

    def take(self, scope: str, limit: int) -> list[Waiting]:
        """The next entries to be applied together, the oldest first, at most `limit`; for the scope's holder only."""
        inbox, suspects, trying, failures = _keys(scope)
        with unavailable_if_down():
            died: Any = self._client.get(trying)
            if died is not None:
                self._note_death(scope, died.decode().split())
            taken = self._take(
                keys=[inbox, suspects, trying, failures, self._names.stream], args=[limit, json.dumps(_TOGETHER)]
            )
        return [_waiting(stream_id.decode(), event, failure) for stream_id, event, failure in taken]

    def put_back(self, scope: str) -> None:
        """The batch in hand was not applied, for reasons that are not its own."""
        with unavailable_if_down():
            self._client.delete(_keys(scope)[2])

    def fail(self, scope: str, batch: Sequence[Waiting], error: str) -> None:
        """The batch in hand failed: all of it is suspect, and is tried again later."""
        inbox, suspects, trying, failures = _keys(scope)
        with unavailable_if_down():
            now = _now_ms(self._client)
            with self._client.pipeline(transaction=True) as pipeline:
                for waiting in batch:
                    failure = _after(waiting.failure, error, now)
                    pipeline.hset(failures, waiting.stream_id, json.dumps(failure._asdict()))
                    pipeline.zrem(inbox, waiting.stream_id)
                    pipeline.zadd(suspects, {waiting.stream_id: now + _wait_ms(failure.attempts)})
                pipeline.delete(trying)
                pipeline.execute()

    def settle(self, scope: str, done: Collection[str], letters: Sequence[Letter]) -> int:
        """Acknowledge what was applied, and set aside what cannot be, in one step; how many letters are new."""
        inbox, suspects, trying, failures = _keys(scope)
        arguments: list[str | bytes | int] = [self._names.group, json.dumps(list(done))]
        for letter in letters:
            fields = list(_fields(letter))
            arguments += [letter.stream_id, letter.event_id, len(fields), *fields]
        with unavailable_if_down():
            return int(
                self._settle(
                    keys=[
                        inbox, suspects, trying, failures,
                        self._names.stream, self._names.dead_letters, f"{self._names.dead_letters}:index",
                    ],
                    args=arguments,
                )
            )  # fmt: skip

    def suspects(self, scope: str) -> list[int]:
        """The positions of entries that failed and will be tried again."""
        with unavailable_if_down():
            stream_ids: Any = self._client.zrange(_keys(scope)[1], 0, -1)
        return [position(stream_id.decode()) for stream_id in stream_ids]

    def _note_death(self, scope: str, stream_ids: Sequence[str]) -> None:
        """The last holder died with these in hand; those that it had settled are no more in the inbox."""
        inbox, suspects, _, failures = _keys(scope)
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.zmscore(inbox, list(stream_ids))
            pipeline.zmscore(suspects, list(stream_ids))
            pipeline.hmget(failures, stream_ids)
            fresh, suspect, known = pipeline.execute()
        batch = [
            _waiting(stream_id, b"", failure)
            for stream_id, *scores, failure in zip(stream_ids, fresh, suspect, known, strict=True)
            if scores != [None, None]
        ]
        self.fail(scope, batch, "the process that was applying it ended")


def _keys(scope: str) -> tuple[str, str, str, str]:
    return f"inbox:{scope}", f"suspects:{scope}", f"trying:{scope}", f"failures:{scope}"


def _score(stream_id: str) -> int:
    """A stream id as a number that a double holds exactly (until 2039) and that orders up to 4,096 entries of one ms;
    entries that it cannot tell apart are ordered by their positions once they are taken."""
    ms, _, sequence = stream_id.partition("-")
    return int(ms) << 12 | min(int(sequence), 4095)


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def _waiting(stream_id: str, event: bytes, failure: bytes | None) -> Waiting:
    return Waiting(stream_id, position(stream_id), event, None if failure is None else Failure(**json.loads(failure)))


def _after(before: Failure | None, error: str, now: int) -> Failure:
    first = before or Failure(0, error, now, error, now)
    return first._replace(attempts=first.attempts + 1, last_error=error, last_failed_at=now)


def _wait_ms(attempts: int) -> int:
    """Full jitter: anything up to a bound that doubles with every attempt."""
    bound = min(_FIRST_WAIT_S * 2 ** (attempts - 1), _LONGEST_WAIT_S)
    return int(random.uniform(0, bound) * 1000)  # noqa: S311 - spreads load only


def _fields(letter: Letter) -> Iterator[str | bytes | int]:
    failure = letter.failure
    for name, value in (
        ("event", letter.event),
        ("stream_id", letter.stream_id),
        ("event_id", letter.event_id),
        ("reason", letter.reason),
        ("attempts", failure.attempts),
        ("first_error", failure.first_error),
        ("first_failed_at", failure.first_failed_at),
        ("last_error", failure.last_error),
        ("last_failed_at", failure.last_failed_at),
        ("trace_id", letter.trace_id),
    ):
        yield from (name, value)
