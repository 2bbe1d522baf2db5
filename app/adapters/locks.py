"""One lock per scope of work: renewed while held, with a fencing token for the database to check.

Whoever wants a scope's work done puts the work where a holder finds it, and asks. If the lock is held by another,
nothing is lost and nobody waits: asking has raised the scope's generation, and a holder frees the lock only while
the generation is still the one it began its last round with, in one script. So what arrives between its last look
and its release is done in another round.

A hint is the queued task that will ask. Its key keeps a second one from being queued meanwhile; it expires, since
a queue may lose tasks.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

import redis
import structlog
from opentelemetry import trace

from app import stopping
from app.adapters.redis_clients import unavailable_if_down
from app.errors import LockLost, Unavailable
from app.observability import metrics
from app.observability.tracing import describe
from app.services.ports import Turn

_logger = structlog.get_logger(__name__)

HINT_LIFE_S = 5.0

# KEYS: lock, generation, fence, hint. ARGV: owner, life in ms.
# The clock makes tokens rise even where Redis has forgotten the last one; the counter, where it stands still.
# A lock that is the asker's own is the same request once more, because its answer was lost: with the same token.
_ASK = """
redis.call('DEL', KEYS[4])
local asked = redis.call('HINCRBY', KEYS[2], 'asked', 1)
redis.call('EXPIRE', KEYS[2], 86400)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local owner = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
if owner and owner ~= ARGV[1] then
    redis.call('HSETNX', KEYS[2], 'since', string.format('%.0f', now))
    return {}
end
local since = redis.call('HGET', KEYS[2], 'since')
redis.call('HDEL', KEYS[2], 'since')
local token = tonumber(redis.call('GET', KEYS[3]) or 0)
if not owner or token == 0 then
    token = math.max(now, token + 1)
    redis.call('SET', KEYS[3], string.format('%.0f', token), 'EX', 86400)
end
return {string.format('%.0f', token), asked, since and now - tonumber(since) or 0}
"""

# Of KEYS the first four are for asking, of ARGV the first two; what follows is for the beginning.
_ASK_AND_BEGIN = """
local function ask(KEYS, ARGV) %s end
local function begin(KEYS, ARGV) %s end
local turn = ask(KEYS, ARGV)
if #turn > 0 then turn[4] = begin({unpack(KEYS, 5)}, {turn[1], unpack(ARGV, 3)}) end
return turn
"""

# KEYS: lock, generation. ARGV: owner, the generation that was worked on, or '' to free the lock whatever was asked.
_FREE = """
local owner = redis.call('GET', KEYS[1])
local asked = redis.call('HGET', KEYS[2], 'asked') or '0'
if not owner and asked == ARGV[2] then return {'free'} end -- already, and the answer was lost
if owner ~= ARGV[1] then return {'lost'} end
if ARGV[2] == '' or asked == ARGV[2] then
    redis.call('DEL', KEYS[1])
    return {'free'}
end
local since = redis.call('HGET', KEYS[2], 'since')
redis.call('HDEL', KEYS[2], 'since')
local time = redis.call('TIME')
return {'asked', asked, since and time[1] * 1000000 + time[2] - tonumber(since) or 0}
"""

# KEYS: lock. ARGV: owner, life in ms.
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class Beginning(NamedTuple):
    """The first thing that a holder does, as a script that is run in the same step in which it becomes the holder: one
    wait for both. Its first argument is the holder's token, `arguments` follow it. Where no answer comes at all, it is
    done all the same, and the lock is nobody's until it expires, as if its holder had died."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[str | int]


class Locks:
    """`ttl_s` is how long a lock outlives its holder's last renewal, in seconds; `stopping` says whether this process
    shall end, and with it its turn."""

    def __init__(self, client: redis.Redis, ttl_s: float, stopping: Callable[[], bool] = stopping.asked) -> None:
        self._client, self._ttl_s, self.stopping = client, ttl_s, stopping
        self._ask_script = client.register_script(_ASK)
        self._ask_and_begin = cache(lambda script: client.register_script(_ASK_AND_BEGIN % (_ASK, script)))
        self._free_script = client.register_script(_FREE)
        self._renew_script = client.register_script(_RENEW)
        self._renewals = _Renewals(ttl_s)

    def hint(self, scope: str, life_s: float = HINT_LIFE_S) -> bool:
        """Whether a task that asks for this scope has to be queued: not while one is on its way. It is taken for lost
        after `life_s` seconds."""
        own = uuid4().bytes
        with unavailable_if_down():
            earlier: Any = self._client.set(hint_key(scope), own, nx=True, get=True, px=int(life_s * 1000))
        return earlier in (None, own)

    def withdraw_hint(self, scope: str) -> None:
        """The task has come, and will not ask: the next one need not wait until it is taken for lost."""
        with unavailable_if_down():
            self._client.delete(hint_key(scope))

    def idle(self, scopes: Sequence[str]) -> list[str]:
        """Those whose lock nobody holds and for which no hint is on its way."""
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for scope in scopes:
                pipeline.exists(_lock(scope), hint_key(scope))
            busy: list[int] = pipeline.execute()
        return [scope for scope, keys in zip(scopes, busy, strict=True) if not keys]

    def held(self, scopes: Sequence[str]) -> list[str]:
        """Those whose lock somebody holds."""
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for scope in scopes:
                pipeline.exists(_lock(scope))
            there: list[int] = pipeline.execute()
        return [scope for scope, key in zip(scopes, there, strict=True) if key]

    def in_rounds(
        self, scope: str, work: Callable[["Held"], bool], turn_s: float, beginning: Beginning | None = None
    ) -> Turn:
        """Hold the scope's lock and call `work` until it gives False, nothing more to do, and nobody has asked since;
        after `turn_s` seconds, or where this process shall end, stop all the same, as `Turn.UNFINISHED` says. Where
        another holds the lock it does this work too, in another round: `Turn.LEFT_TO_HOLDER`.

        Raises `LockLost` before a call of `work` once the lock is lost, and `Unavailable`.
        """
        held = self._ask(scope, beginning)
        if held is None:
            return Turn.LEFT_TO_HOLDER
        began = time.monotonic()
        with metrics.lock_hold.labels(_kind(scope)).time(), held:
            while True:
                held.check()
                more = work(held)
                over = held.stopping() or time.monotonic() - began > turn_s
                if not more and held.free_unless_asked():
                    return Turn.DONE
                if over:
                    return Turn.UNFINISHED

    def _ask(self, scope: str, beginning: Beginning | None) -> "Held | None":
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4()}"
        keys = [_lock(scope), _generation(scope), fence_key(scope), hint_key(scope)]
        arguments: list[str | int] = [owner, int(self._ttl_s * 1000)]
        script = self._ask_script
        if beginning is not None:
            keys += beginning.keys
            arguments += beginning.arguments
            script = self._ask_and_begin(beginning.script)
        asked_at = time.monotonic()
        with unavailable_if_down():
            answer: list[Any] = script(keys=keys, args=arguments)
        if not answer:
            metrics.lock_left_to_holder.labels(_kind(scope)).inc()
            describe(lock_left_to_holder=True)
            return None
        token, asked, waited_us = map(int, answer[:3])
        metrics.lock_wait.labels(_kind(scope)).observe(waited_us / 1e6)
        describe(lock_wait_ms=waited_us // 1000)
        return Held(self, scope, owner, token, asked, asked_at + self._ttl_s, answer[3:])


class Held:
    """A lock that this process holds, or held. `token` is higher than that of every earlier holder."""

    def __init__(
        self, locks: Locks, scope: str, owner: str, token: int, asked: int, until: float, begun: list[Any]
    ) -> None:
        self.scope, self.token, self._begun = scope, token, begun
        self._locks, self._owner, self._asked, self._until = locks, owner, asked, until
        self._released = False
        self._at_work = threading.Lock()

    def take_begun(self) -> Any:
        """What the beginning gave, once; None after that, and where there was none."""
        return self._begun.pop() if self._begun else None

    def check(self) -> None:
        """Raises `LockLost` where the lock is another's by now, or was not renewed in time: a process that was
        stopped finds its clock past the lock's end when it wakes."""
        if time.monotonic() >= self._until:
            raise LockLost(f"the lock on {self.scope} was lost")

    def stopping(self) -> bool:
        """Whether this process shall end: the turn is over after this batch."""
        return self._locks.stopping()

    def free_unless_asked(self) -> bool:
        """Free the lock; False, and still held, where somebody has asked since this round began."""
        with self._at_work:
            answer = self._free(str(self._asked))
            self._released = answer[0] == b"free"
        if answer[0] == b"asked":
            self._asked = int(answer[1])
            metrics.lock_wait.labels(_kind(self.scope)).observe(int(answer[2]) / 1e6)
            trace.get_current_span().add_event("another round", {"pricing.lock_wait_ms": int(answer[2]) // 1000})
        elif answer[0] == b"lost":
            self._lose()
            self.check()
        return self._released

    def renew(self) -> None:
        """Begin the lock's life anew, unless it is freed or lost by now."""
        renewed_at = time.monotonic()
        with self._at_work:
            if self._released or not self._until:
                return
            try:
                renewed = self._locks._renew_script(
                    keys=[_lock(self.scope)], args=[self._owner, int(self._locks._ttl_s * 1000)]
                )
            except redis.RedisError:
                return
            if renewed:
                self._until = renewed_at + self._locks._ttl_s
                metrics.lock_renewals.labels(_kind(self.scope)).inc()
            else:
                self._lose()

    def __enter__(self) -> "Held":
        self._locks._renewals.begin(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._locks._renewals.end(self)
        with self._at_work:
            if not self._released:
                self._released = True
                with suppress(Unavailable):  # it expires; the fence keeps its late holder from writing
                    self._free("")

    def _free(self, generation: str) -> list[bytes]:
        with unavailable_if_down():
            answer: list[bytes] = self._locks._free_script(
                keys=[_lock(self.scope), _generation(self.scope)], args=[self._owner, generation]
            )
        return answer

    def _lose(self) -> None:
        self._until = 0.0
        metrics.lock_lost.labels(_kind(self.scope)).inc()


class _Renewals:
    """One thread renews all that this process holds: to start one for each lock takes as long as some are held for. It
    looks every third of a lock's life, and ends where nothing is held."""

    def __init__(self, ttl_s: float) -> None:
        self._interval_s = ttl_s / 3
        self._held: set[Held] = set()
        self._books = threading.Lock()
        self._runs = False

    def begin(self, held: Held) -> None:
        with self._books:
            self._held.add(held)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="renew locks", daemon=True).start()

    def end(self, held: Held) -> None:
        with self._books:
            self._held.discard(held)

    def _run(self) -> None:
        while True:
            time.sleep(self._interval_s)
            with self._books:
                if not self._held:
                    self._runs = False
                    return
                held = list(self._held)
            for each in held:
                try:
                    each.renew()
                except Exception as error:  # a defect; but the other locks are to be renewed all the same
                    _logger.error("a lock cannot be renewed", scope=each.scope, exc_info=error)


def fence_key(scope: str) -> str:
    """Where the newest holder's token is."""
    return f"fence:{scope}"


def hint_key(scope: str) -> str:
    """Where it is said that a task for the scope is on its way."""
    return f"hint:{scope}"


def _lock(scope: str) -> str:
    return f"lock:{scope}"


def _generation(scope: str) -> str:
    return f"generation:{scope}"


def _kind(scope: str) -> str:
    """The bounded part of a scope's name, for labels."""
    return scope.partition(":")[0]
