"""The stream of dead letters: looked through, put back into the stream of events, or thrown away.

Taking a letter out and publishing its event are one script, so a repeat changes nothing and of two at once one does it.
Replays are limited by a token bucket in Redis, which all who replay share: as many tokens as are added in a second.
"""

from collections.abc import Sequence
from typing import Any

import redis

from app.adapters.event_names import Names, seen_key
from app.adapters.redis_clients import unavailable_if_down
from app.domain.dead_letter import DeadLetter, Replayed, Wait
from app.domain.events import Event
from app.domain.scopes import scope_of

# Bodies of both scripts. The index leads from an event's id to its newest letter.
_REMOVE = """
local function remove(letter)
    local entry = redis.call('XRANGE', KEYS[1], letter, letter)[1]
    if not entry then return false end
    for i = 1, #entry[2], 2 do
        if entry[2][i] == 'event_id' and redis.call('HGET', KEYS[2], entry[2][i + 1]) == letter then
            redis.call('HDEL', KEYS[2], entry[2][i + 1])
        end
    end
    redis.call('XDEL', KEYS[1], letter)
    return true
end
"""

# KEYS: dead letters, index. ARGV: letters.
_DISCARD = f"""{_REMOVE}
local discarded = {{}}
for _, letter in ipairs(ARGV) do
    if remove(letter) then discarded[#discarded + 1] = letter end
end
return discarded
"""

# KEYS: dead letters, index, bucket, stream, the event's key. ARGV: letter, event, its scope, seconds to remember its
# id, channel, replays per second. The bucket is full when nobody has replayed for a second.
_REPLAY = f"""{_REMOVE}
local letter, event, scope, remember_s, channel, rate = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
if redis.call('EXISTS', KEYS[1]) == 0 or #redis.call('XRANGE', KEYS[1], letter, letter) == 0 then return {{}} end
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local bucket = redis.call('HMGET', KEYS[3], 'tokens', 'at')
local tokens = tonumber(bucket[1]) or rate
tokens = math.min(rate, tokens + math.max(0, now - (tonumber(bucket[2]) or now)) * rate / 1000)
local granted = tokens >= 1
redis.call('HSET', KEYS[3], 'tokens', granted and tokens - 1 or tokens, 'at', now)
redis.call('PEXPIRE', KEYS[3], 1000)
if not granted then return {{math.ceil((1 - tokens) * 1000 / rate)}} end
remove(letter)
local place = redis.call('XADD', KEYS[4], '*', 'scope', scope, 'event', event)
redis.call('SET', KEYS[5], place, 'EX', remember_s)
redis.call('PUBLISH', channel, event)
return {{0, place}}
"""


class DeadLetters:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names, remember_s: int, replays_per_s: int) -> None:
        self._client, self._names, self._remember_s, self._rate = client, names, remember_s, replays_per_s
        self._index, self._bucket = f"{names.dead_letters}:index", f"{names.dead_letters}:replays"
        self._replay = client.register_script(_REPLAY)
        self._discard = client.register_script(_DISCARD)

    def of_event(self, event_id: str) -> DeadLetter | None:
        """The newest letter about an event."""
        with unavailable_if_down():
            letter_id: Any = self._client.hget(self._index, event_id)
        return self.get(letter_id.decode()) if letter_id is not None else None

    def count(self) -> int:
        with unavailable_if_down():
            return int(self._client.xlen(self._names.dead_letters))

    def get(self, letter_id: str) -> DeadLetter | None:
        with unavailable_if_down():
            entries: Any = self._client.xrange(self._names.dead_letters, letter_id, letter_id)
        return next(map(_letter, entries), None)

    def newest(self, before: str, since: int, count: int) -> list[DeadLetter]:
        """The newest before a letter (of all, where that is empty), set aside from `since` (ms) on."""
        if before and not before.strip("0-"):
            return []  # Redis knows no range that ends before the first id
        with unavailable_if_down():
            entries: Any = self._client.xrevrange(
                self._names.dead_letters, f"({before}" if before else "+", str(since), count
            )
        return [_letter(entry) for entry in entries]

    def oldest(self, after: str, since: int, count: int) -> list[DeadLetter]:
        """The oldest after a letter (of all, where that is empty), set aside from `since` (ms) on."""
        with unavailable_if_down():
            entries: Any = self._client.xrange(
                self._names.dead_letters, f"({after}" if after else str(since), "+", count
            )
        return [_letter(entry) for entry in entries]

    def replay(self, letter: DeadLetter, event: Event) -> Replayed | Wait | None:
        """Put the letter's event into the stream again and the letter away; None where the letter is gone."""
        envelope = letter.event.strip()
        if event.streamid is None and letter.stream_id:
            # It keeps its place among the events: what has come after it is newer than it.
            envelope = b'{"streamid":"%b",%b' % (letter.stream_id.encode(), envelope[1:])
        with unavailable_if_down():
            answer = self._replay(
                keys=[self._names.dead_letters, self._index, self._bucket, self._names.stream, seen_key(event.id)],
                args=[
                    letter.letter_id,
                    envelope,
                    scope_of(event.type, event.subject),
                    self._remember_s,
                    self._names.channel,
                    self._rate,
                ],
            )
        match answer:
            case []:
                return None
            case [_, stream_id]:
                return Replayed(letter.letter_id, event.id, stream_id.decode())
            case _:
                return Wait(answer[0])

    def discard(self, letter_ids: Sequence[str]) -> list[str]:
        """Throw letters away; those that were there."""
        with unavailable_if_down():
            answer = self._discard(keys=[self._names.dead_letters, self._index], args=list(letter_ids))
        return [letter_id.decode() for letter_id in answer]

    def close(self) -> None:
        self._client.close()


def _letter(entry: Any) -> DeadLetter:
    letter_id, fields = entry
    texts = {name.decode(): value.decode(errors="replace") for name, value in fields.items() if name != b"event"}
    return DeadLetter(
        letter_id=letter_id.decode(),
        event=fields.get(b"event", b""),
        stream_id=texts.get("stream_id", ""),
        reason=texts.get("reason", ""),
        attempts=_number(texts.get("attempts", "")),
        first_error=texts.get("first_error", ""),
        first_failed_at=_number(texts.get("first_failed_at", "")),
        last_error=texts.get("last_error", ""),
        last_failed_at=_number(texts.get("last_failed_at", "")),
        trace_id=texts.get("trace_id", ""),
    )


def _number(text: str) -> int:
    """0 where a letter of another making says something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0
