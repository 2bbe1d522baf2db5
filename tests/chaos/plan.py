"""Which faults, when, on whom and for how long: all from one seed."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import psutil

from tests.chaos import faults
from tests.chaos.fleet import COMPILER, SECOND, Fleet

Context = AbstractContextManager[None]


class Strike(NamedTuple):
    """One fault of the plan. `pick`, in [0, 1), says which of several children, rows, …"""

    at_s: float
    kind: str
    target: str
    lasts_s: float
    pick: float

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.kind}: {self.target}{lasts}"


class Kind(NamedTuple):
    """`strike` begins the fault, or gives None where there is just now nobody to strike. `targets` are chosen of
    the services; `hurts` is what readers and publishers may find away because of it, until it is back: one that the
    fault `ends` as another process."""

    strike: Callable[[Fleet, Strike], Context | None]
    targets: Callable[[Sequence[str]], Sequence[str]]
    hurts: Callable[[str], str | None]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    ends: bool = False


def _root(act: Callable[[psutil.Process], Context]) -> Callable[[Fleet, Strike], Context | None]:
    def strike(fleet: Fleet, strike: Strike) -> Context | None:
        root = fleet.root(strike.target)
        return None if root is None else act(root)

    return strike


def _child(act: Callable[[list[psutil.Process]], Context]) -> Callable[[Fleet, Strike], Context | None]:
    def strike(fleet: Fleet, strike: Strike) -> Context | None:
        children = fleet.tree(strike.target)[1:]
        return act([children[int(strike.pick * len(children))]]) if children else None

    return strike


def _tree(act: Callable[[list[psutil.Process]], Context]) -> Callable[[Fleet, Strike], Context | None]:
    def strike(fleet: Fleet, strike: Strike) -> Context | None:
        tree = fleet.tree(strike.target)
        return act(tree) if tree else None

    return strike


def _backend(fleet: Fleet, strike: Strike) -> Context | None:
    backends = faults.backends(fleet)
    return faults.killed([backends[int(strike.pick * len(backends))]]) if backends else None


def _all(services: Sequence[str]) -> Sequence[str]:
    return services


def _with_children(services: Sequence[str]) -> Sequence[str]:
    return [name for name in services if not name.startswith("listener")]


def _only(*names: str) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda _: names


def _api(target: str) -> str | None:
    return target if target.startswith("api") else None


def _itself(target: str) -> str | None:
    return target


def _nothing(_: str) -> str | None:
    return None


def _network(**which: bool) -> Callable[[Fleet, Strike], Context | None]:
    return lambda fleet, strike: faults.half_open(fleet, **which, resumes=strike.pick < 0.5)


LONG = (2.5, 5.0)
"""Longer than a lock lives (`PRICING_LOCK_TTL_S`) in these tests."""

_network_of_second = _only("network" + SECOND)

KINDS: dict[str, Kind] = {
    "kill -9": Kind(_root(lambda root: faults.killed([root])), _all, _api, ends=True),
    "kill -9 of a child": Kind(_child(faults.killed), _with_children, _api),
    "stop and continue": Kind(_tree(faults.stopped), _all, _api, LONG),
    "stop and continue a child": Kind(_child(faults.stopped), _with_children, _api, LONG),
    "SIGTERM": Kind(_root(faults.told_to_end), _all, _api, ends=True),
    "SIGTERM to a child": Kind(_child(lambda c: faults.told_to_end(c[0])), _with_children, _nothing),
    "Redis: kill -9": Kind(_root(lambda root: faults.killed([root])), _only("broker", "cache"), _itself, ends=True),
    "Redis: stop and continue": Kind(_tree(faults.stopped), _only("broker", "cache"), _itself, LONG),
    "PostgreSQL: fast restart": Kind(_root(faults.restarted_fast), _only("postgres"), _itself, ends=True),
    "PostgreSQL: kill -9": Kind(_root(lambda root: faults.killed([root])), _only("postgres"), _itself, ends=True),
    "PostgreSQL: kill -9 of a backend": Kind(_backend, _only("postgres"), _itself),
    "PostgreSQL: stop and continue": Kind(_tree(faults.stopped), _only("postgres"), _itself, LONG),
    "half-open to Redis": Kind(_network(redis=True), _network_of_second, _itself, LONG),
    "half-open to PostgreSQL": Kind(_network(postgres=True), _network_of_second, _itself, LONG),
    "half-open to both": Kind(_network(redis=True, postgres=True), _network_of_second, _itself, LONG),
    "cut off from Redis": Kind(lambda f, s: faults.cut_off(f, redis=True), _network_of_second, _itself, LONG),
    "cut off from PostgreSQL": Kind(lambda f, s: faults.cut_off(f, postgres=True), _network_of_second, _itself, LONG),
    "events read by a consumer that dies": Kind(
        lambda f, s: faults.read_by_a_consumer_that_dies(f, 1 + int(s.pick * 20)), _only("stream"), _nothing
    ),
    "poison": Kind(lambda f, s: faults.poisoned(f, s.target), _only("stream", "channel"), _nothing),
}
if COMPILER is not None:
    KINDS["clock jump"] = Kind(
        lambda f, s: faults.clock_jumps(f, int((s.pick - 0.5) * 7200)), _only("clock" + SECOND), _itself, (3.0, 8.0)
    )


def plan(seed: int, seconds: float, services: Sequence[str], gap_s: tuple[float, float]) -> list[Strike]:
    """Every kind once, those of the services twice, then any; for so many seconds. Some overlap. The services take
    turns."""
    dice = random.Random(f"plan {seed}")
    names = [name for name, kind in KINDS.items() for _ in range(1 + (len(kind.targets(services)) > 2))]
    turns, first, strikes, at = list(services), names.copy(), list[Strike](), 1.0
    dice.shuffle(turns)
    dice.shuffle(first)
    while at < seconds:
        name = first.pop() if first else dice.choice(names)
        kind = KINDS[name]
        candidates, lasts = kind.targets(services), dice.uniform(*kind.lasts_s)
        target = next((service for service in turns if service in candidates), dice.choice(candidates))
        if target in turns:
            turns.append(turns.pop(turns.index(target)))
        if at + lasts < seconds:
            strikes.append(Strike(round(at, 2), name, target, round(lasts, 2), dice.random()))
        at += dice.uniform(*gap_s)
    return strikes
