"""The Pub/Sub channel: the doorbell, and messages that others publish straight to it."""

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import redis

from app.adapters.event_names import Names
from app.adapters.redis_clients import unavailable_if_down


class EventChannel:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._heartbeats = f"{names.channel}:heartbeat"

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

    def hear(self, message: bytes, window_s: int) -> tuple[str, bool]:
        """An id for a message that came without the stream, the same for all who hear it within the window
        (seconds), and whether this is the first of them."""
        key, own_id = f"heard:{hashlib.sha256(message).hexdigest()}", str(uuid4())
        with unavailable_if_down():
            earlier: Any = self._client.set(key, own_id, nx=True, get=True, ex=window_s)
        first = earlier is None or earlier.decode() == own_id
        return (own_id, True) if first else (earlier.decode(), False)

    def refuse(self, message: bytes, reason: str) -> None:
        """Set aside a message that never was in the stream."""
        with unavailable_if_down():
            seconds, microseconds = self._client.time()
            now = seconds * 1000 + microseconds // 1000
            letter: dict[Any, Any] = {
                "event": message, "stream_id": "", "event_id": "", "reason": reason, "attempts": 1,
                "first_error": reason, "first_failed_at": now, "last_error": reason, "last_failed_at": now,
                "trace_id": "",
            }  # fmt: skip
            self._client.xadd(self._names.dead_letters, letter)
