"""One lock per repricing scope: renewed while held, with a fencing token for the database to check."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import LockError

from app.adapters.redis_clients import unavailable_if_down
from app.errors import LockHeld, Unavailable

# The clock makes tokens rise even where Redis has forgotten the last one; the counter, where it stands still.
_NEXT_FENCE = """
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
if token <= last then token = last + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', token), 'EX', 86400)
return string.format('%.0f', token)
"""


class Locks:
    def __init__(self, client: redis.Redis, ttl_s: float) -> None:
        self._client, self._ttl_s = client, ttl_s
        self._next_token = client.register_script(_NEXT_FENCE)

    @contextmanager
    def hold(self, scope: str, wait_s: float = 0) -> Iterator[int]:
        """Hold the scope's lock; gives the fencing token. Raises `LockHeld` where another run still has it
        after `wait_s`. Losing the lock meanwhile shows at the fence, when writing."""
        with unavailable_if_down():
            lock = self._client.lock(
                f"lock:{scope}", timeout=self._ttl_s, blocking_timeout=wait_s, sleep=0.02, thread_local=False
            )
            if not lock.acquire():
                raise LockHeld(f"another run holds the lock on {scope}")
        released = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(lock, released), daemon=True)
        renewer.start()
        try:
            with unavailable_if_down():
                token = int(self._next_token(keys=[f"fence:{scope}"]))
            yield token
        finally:
            released.set()
            renewer.join()
            try:
                with unavailable_if_down():
                    lock.release()
            except (LockError, Unavailable):
                pass  # it expired, or will: the fence keeps its late holder from writing

    def _renew(self, lock: redis.lock.Lock, released: threading.Event) -> None:
        while not released.wait(self._ttl_s / 3):
            try:
                lock.reacquire()
            except LockError:
                return
            except redis.RedisError:
                continue
