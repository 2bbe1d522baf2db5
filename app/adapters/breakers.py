"""Circuit breakers that every process shares: one per store that work needs, one per kind of work,
one per sink of telemetry.

Closed, outcomes are counted in a window; too many failures, and too large a share of all, open it. Open, nothing that
needs it is begun. After a while it is half open: one try at a time is let through, and its outcome closes the breaker
or opens it again, for twice as long. A try that had nothing to do gives its turn back. The clock is that of Redis,
so all processes agree.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import redis

from app.adapters.redis_clients import unavailable_if_down
from app.services.ports import BreakerState, Tally

POSTGRESQL, CACHE = "postgresql", "cache"
APPLYING, RECALCULATING, BOUNDARIES = "apply_events", "recalculate", "reprice_due"
TELEMETRY_POSTGRESQL, TELEMETRY_VICTORIAMETRICS = "telemetry_postgresql", "telemetry_victoriametrics"
SINKS = (TELEMETRY_POSTGRESQL, TELEMETRY_VICTORIAMETRICS)
NAMES = (POSTGRESQL, CACHE, APPLYING, RECALCULATING, BOUNDARIES, *SINKS)

_KEY = "breaker:"


class Limits(NamedTuple):
    """Opens at `failures` or more in `window_ms` that are `percent` of all outcomes or more; for `open_ms` at first,
    `longest_ms` at most. A try in half-open state that says nothing for `try_ms` is given up."""

    failures: int
    percent: int = 50
    window_ms: int = 60_000
    open_ms: int = 1_000
    longest_ms: int = 30_000
    try_ms: int = 10_000


STORE_LIMITS = Limits(failures=5, window_ms=10_000, longest_ms=5_000)
SINK_LIMITS = Limits(failures=5, window_ms=60_000, longest_ms=15_000)
WORK_LIMITS = Limits(failures=50, open_ms=10_000)
"""Of work, failures are events that nobody could apply: more than this, and the fault is probably not theirs."""

_STATE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(key)
    local fields = redis.call('HMGET', key, 'state', 'until', 'good', 'bad', 'since', 'open_ms')
    local until_ms = tonumber(fields[2] or 0)
    return fields[1] or 'closed', until_ms, tonumber(fields[3] or 0), tonumber(fields[4] or 0),
        tonumber(fields[5] or 0), tonumber(fields[6] or 0)
end
"""

# KEYS: breakers. ARGV: how long a try may take (ms). All must let it through, or none is asked for a try.
_LET_THROUGH = f"""{_STATE}
for _, key in ipairs(KEYS) do
    local state, until_ms = read(key)
    if state ~= 'closed' and now < until_ms then return 'open' end
end
local answer = 'closed'
for _, key in ipairs(KEYS) do
    local state = read(key)
    if state ~= 'closed' then
        redis.call('HSET', key, 'state', 'half_open', 'until', now + ARGV[1])
        answer = 'half_open'
    end
end
return answer
"""

# KEYS: breaker. ARGV: good, bad, failures, percent, window_ms, open_ms, longest_ms, reason.
_NOTE = f"""{_STATE}
local state, until_ms, good, bad, since, open_ms = read(KEYS[1])
local new_good, new_bad = tonumber(ARGV[1]), tonumber(ARGV[2])
local function open(for_ms)
    redis.call('HSET', KEYS[1], 'state', 'open', 'until', now + for_ms, 'open_ms', for_ms, 'good', 0, 'bad', 0,
        'reason', ARGV[8])
    return 'open'
end
if state == 'open' then return state end
if new_good + new_bad == 0 then
    if state == 'half_open' then redis.call('HSET', KEYS[1], 'until', now) end
    return state
end
if state == 'half_open' then
    if new_bad * 100 >= tonumber(ARGV[4]) * (new_good + new_bad) then
        return open(math.min(open_ms * 2, tonumber(ARGV[7])))
    end
    redis.call('DEL', KEYS[1])
    return 'closed'
end
if now - since > tonumber(ARGV[5]) then good, bad, since = 0, 0, now end
good, bad = good + new_good, bad + new_bad
if bad >= tonumber(ARGV[3]) and bad * 100 >= tonumber(ARGV[4]) * (good + bad) then return open(tonumber(ARGV[6])) end
redis.call('HSET', KEYS[1], 'state', 'closed', 'good', good, 'bad', bad, 'since', since)
return 'closed'
"""


class Breakers:
    """Every method raises `Unavailable` where Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._let_through = client.register_script(_LET_THROUGH)
        self._note = client.register_script(_NOTE)

    def let_through(self, names: Collection[str]) -> BreakerState:
        """Whether work that needs these may begin: not if OPEN; if HALF_OPEN, as the one try, whose outcome is to
        be noted for each."""
        with unavailable_if_down():
            state = self._let_through(keys=[_KEY + name for name in names], args=[STORE_LIMITS.try_ms])
        return BreakerState(state.decode())

    def note(self, name: str, *, good: int = 0, bad: int = 0, reason: str = "") -> BreakerState:
        """Count outcomes; the state that follows. `reason` says of the last failure why. A try that found nothing to
        do notes neither good nor bad."""
        limits = _limits(name)
        with unavailable_if_down():
            state = self._note(
                keys=[_KEY + name],
                args=[
                    good, bad,
                    limits.failures, limits.percent, limits.window_ms, limits.open_ms, limits.longest_ms, reason,
                ],
            )  # fmt: skip
        return BreakerState(state.decode())

    def tallies(self) -> dict[str, Tally]:
        """Every breaker as it is."""
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for name in NAMES:
                pipeline.hmget(_KEY + name, "state", "good", "bad", "reason")
            answers: list[list[Any]] = pipeline.execute()
        return {name: _tally(fields) for name, fields in zip(NAMES, answers, strict=True)}

    def reset(self, name: str) -> None:
        """Close it, and forget what was counted."""
        with unavailable_if_down():
            self._client.delete(_KEY + name)


class SinkBreaker:
    """The breaker of one sink, as a pipeline's consumer has it."""

    def __init__(self, breakers: Breakers, name: str) -> None:
        self._breakers, self._name = breakers, name

    def let_through(self) -> BreakerState:
        return self._breakers.let_through([self._name])

    def note(self, *, good: int = 0, bad: int = 0, reason: str = "") -> BreakerState:
        return self._breakers.note(self._name, good=good, bad=bad, reason=reason)


def _limits(name: str) -> Limits:
    if name in (POSTGRESQL, CACHE):
        return STORE_LIMITS
    return SINK_LIMITS if name in SINKS else WORK_LIMITS


def _tally(fields: list[bytes | None]) -> Tally:
    state, good, bad, reason = fields
    return Tally(BreakerState((state or b"closed").decode()), int(good or 0), int(bad or 0), (reason or b"").decode())
