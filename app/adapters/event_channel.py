"""The Pub/Sub channel: the doorbell, and messages that others publish straight to it."""

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import Any
from uuid import uuid4

import redis

from app.adapters.event_names import Names
from app.adapters.redis_clients import unavailable_if_down

# KEYS: what remembers the message, dead letters. ARGV: for how long (s), then the letter's fields. It is noted last: an
# error between the two, which Redis does not undo, must not lose the message.
_REFUSE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local letter = {unpack(ARGV, 2)}
for _, name in ipairs({'first_failed_at', 'last_failed_at'}) do
    letter[#letter + 1] = name
    letter[#letter + 1] = string.format('%.0f', now)
end
redis.call('XADD', KEYS[2], '*', unpack(letter))
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
return 1
"""


class EventChannel:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._heartbeats = f"{names.channel}:heartbeat"
        self._refuse = client.register_script(_REFUSE)

    def subscribe(self) -> redis.client.PubSub:
        """A subscription to the channel, on a connection of its own."""
        subscription: redis.client.PubSub = self._client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        with unavailable_if_down():
            subscription.subscribe(self._names.channel, self._heartbeats)
        return subscription

    def ring_heartbeat(self) -> None:
        """Something for every subscriber to hear, on a channel beside that of the events."""
        with unavailable_if_down():
            self._client.publish(self._heartbeats, b"")

    def is_heartbeat(self, message: Mapping[str, Any]) -> bool:
        return bool(message["channel"] == self._heartbeats.encode())

    def name(self, message: bytes, window_s: int) -> str:
        """An id for a message that came without one, the same for all who hear it within the window (seconds)."""
        own_id = str(uuid4())
        with unavailable_if_down():
            earlier: Any = self._client.set(_heard(message), own_id, nx=True, get=True, ex=window_s)
        return own_id if earlier is None else str(earlier.decode())

    def refuse(self, message: bytes, reason: str, window_s: int) -> bool:
        """Set aside a message that never was in the stream; false where somebody has done so within the window."""
        letter: dict[str, Any] = {
            "event": message, "stream_id": "", "event_id": "", "reason": reason, "attempts": 1,
            "first_error": reason, "last_error": reason, "trace_id": "",
        }  # fmt: skip
        with unavailable_if_down():
            return bool(
                self._refuse(
                    keys=[_heard(message), self._names.dead_letters],
                    args=[window_s, *chain.from_iterable(letter.items())],
                )
            )


def _heard(message: bytes) -> str:
    return f"heard:{hashlib.sha256(message).hexdigest()}"
