"""Carries out a plan of faults, and keeps account of what is away because of them."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import psycopg
import redis

from app.local.addresses import is_ready
from tests.chaos.fleet import SECOND, Fleet, succeeds
from tests.chaos.ledger import Ledger, Violation, Window
from tests.chaos.plan import KINDS, Strike

TURN_S = 0.05
RECOVERY_S = 5.0
"""docs/architecture.md: an outage ends within 5 s for readers."""
BACK_S = 90.0
"""For a process to be there again: the supervisor waits up to 30 s before it starts one that died often."""


class Strikes:
    """Carries out a plan: begins and ends each fault in time, tends the second host, and notes what was away."""

    def __init__(self, fleet: Fleet, ledger: Ledger, strikes: list[Strike]) -> None:
        self._fleet, self._ledger = fleet, ledger
        self._due = sorted(strikes, key=lambda strike: strike.at_s)
        self._active: list[tuple[float, Strike, ExitStack]] = []
        self._away: list[tuple[str, float, psutil.Process | None]] = []

    def carry_out(self, until_s: float, each_turn: Callable[[], None]) -> None:
        """Until so many seconds are over and all faults have ended, and what they hurt is back."""
        began, now = self._ledger.now(), 0.0
        try:
            while now <= until_s or self._active or self._away:
                now = self._ledger.now() - began
                while self._due and self._due[0].at_s <= now:
                    self._begin(self._due.pop(0), now)
                self._end(now)
                self._fleet.tend()
                self._see_who_is_back()
                each_turn()
                time.sleep(TURN_S)
        finally:
            self._end(math.inf)  # nobody can be ended who is stopped

    def _begin(self, strike: Strike, now: float) -> None:
        kind, stack = KINDS[strike.kind], ExitStack()
        since = self._ledger.now()
        try:
            doomed = self._fleet.root(strike.target) if kind.ends else None
            fault = kind.strike(self._fleet, strike)
            if fault is not None:
                stack.enter_context(fault)
        except (redis.RedisError, psycopg.Error):  # needs a store that another fault has taken away
            fault = None
        if fault is None:
            self._ledger.note(f"nobody there: {strike}")
            return
        self._ledger.fault(f"{strike.kind}: {strike.target}", str(strike))
        self._active.append((now + strike.lasts_s, strike, stack))
        if (hurt := kind.hurts(strike.target)) is not None:
            self._away.append((hurt, since, doomed))

    def _end(self, now: float) -> None:
        for active in [active for active in self._active if active[0] <= now]:
            _, strike, stack = active
            self._active.remove(active)
            stack.close()
            if strike.lasts_s:
                self._ledger.note(f"ended: {strike.kind}: {strike.target}")

    def _see_who_is_back(self) -> None:
        hurting = {KINDS[strike.kind].hurts(strike.target) for _, strike, _ in self._active}
        for hurt in list(self._away):
            what, since, doomed = hurt
            now = self._ledger.now()
            self._ledger.was_away(Window(what, since, now + RECOVERY_S))
            if what not in hurting and not (doomed and doomed.is_running()) and self._is_back(what):
                self._away.remove(hurt)
            elif now - since > BACK_S:
                self._ledger.broken(Violation("what was hurt comes back", f"{what} is still away", at=since))
                self._away.remove(hurt)

    def _is_back(self, what: str) -> bool:
        if what == "postgres":
            return self._fleet.postgres_answers()
        if what == "broker":
            return succeeds(self._fleet.broker.ping)
        if what == "cache":
            return succeeds(self._fleet.cache.ping)
        if what not in ("network" + SECOND, *self._fleet.urls):
            return True
        return is_ready(self._fleet.urls[what.replace("network", "api")], timeout_s=1)
