"""One run: a system and a second host, load and readers, faults by plan, and the accounts at the end."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import faults
from tests.chaos.backlog import Backlog, backlog, unfinished
from tests.chaos.fleet import Fleet, is_ready, succeeds
from tests.chaos.invariants import Outcome, all_violations
from tests.chaos.ledger import Ledger, Violation
from tests.chaos.load import Load, Witness
from tests.chaos.market import DECIMALS, Market, Product
from tests.chaos.plan import plan
from tests.chaos.readers import Readers
from tests.chaos.striking import BACK_S, Strikes
from tests.support.shop import IMPATIENT, Shop
from tests.support.stores import temporary_data
from tests.support.system import System
from tests.support.waiting import eventually

ENV = IMPATIENT | {"PRICING_LOG_LEVEL": "warning"}
SETTLE_S = 120.0
CATEGORIES = ("Chaos A", "Chaos B", "Chaos C")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`events_per_s` as long as fewer than `most_waiting` of them wait. What is written goes to `folder`."""

    seed: int
    seconds: float
    folder: Path
    events_per_s: float = 150.0
    reads_per_s: float = 60.0
    most_waiting: int = 300
    products: int = 24
    gap_s: tuple[float, float] = (1.5, 4.5)


@dataclass
class Result:
    options: Options
    ledger: Ledger
    outcome: Outcome
    violations: list[Violation]
    counts: Counter[str]
    figures: dict[str, Any] = field(default_factory=dict)


@contextmanager
def fleet_with_shop(products: int) -> Iterator[tuple[Fleet, list[Product]]]:
    """A system with two hosts and a few products; both are stopped at the end."""
    with temporary_data("pricing-chaos-") as data:
        system = System(data, "--catalog", "none", env=ENV)
        try:
            shop = Shop(system.wait_until_ready())
            made = [
                Product(shop.product(dict.fromkeys(DECIMALS, 1000), category), category)
                for category in (CATEGORIES[n % len(CATEGORIES)] for n in range(products))
            ]
            shop.close()
            fleet = Fleet(system)
            fleet.some_product = made[0].product_id
            try:
                fleet.add_second_host()
                eventually(lambda: all(is_ready(url) for url in fleet.urls.values()), BACK_S)
                yield fleet, made
            finally:
                fleet.stop()
        finally:
            system.stop()


def run(options: Options, say: Say) -> Result:
    """Everything, from nothing to the accounts."""
    with fleet_with_shop(options.products) as (fleet, products):
        ledger = Ledger(options.folder / f"ledger-{options.seed}.jsonl")
        market = Market(products, options.seed)
        faults.arm_poison(fleet)
        witness, waits = Witness(fleet, ledger), Backlog(fleet, ledger)
        load = Load(fleet, ledger, market, options.seed, options.events_per_s, options.most_waiting)
        readers = Readers(fleet, ledger, market.rows, options.seed, options.reads_per_s)
        strikes = plan(options.seed, options.seconds, sorted(fleet.services()), options.gap_s)
        say(f"{len(strikes)} faults planned for {options.seconds:g} s, on {', '.join(sorted(fleet.services()))}")
        witness.start()
        load.first_prices()
        settle(fleet, SETTLE_S)
        waits.start()
        readers.start()
        load.start(lambda: waits.waiting)
        progress = Progress(ledger, waits, say)
        Strikes(fleet, ledger, strikes).carry_out(options.seconds, progress.tell)
        load.stop()
        began = time.monotonic()
        left = settle(fleet, SETTLE_S)
        settled_s = time.monotonic() - began
        say(f"settled in {settled_s:.1f} s")
        waits.stopping.set()
        readers.stop()
        witness.stop()
        eventually(lambda: unfinished(fleet)["due boundaries"] == 0, 10)
        violations, outcome = all_violations(fleet, ledger, products, market.rows)
        if left:
            violations.append(Violation("the backlog goes back to nothing", f"{left} after {SETTLE_S:g} s"))
        ledger.close()
        shutil.copytree(fleet.system.data / "logs", options.folder / f"logs-{options.seed}", dirs_exist_ok=True)
        figures = _figures(fleet, ledger, outcome) | {
            "settled": {"s": round(settled_s, 1), "most waiting": waits.highest}
        }
        return Result(options, ledger, outcome, violations, ledger.counts, figures)


def _figures(fleet: Fleet, ledger: Ledger, outcome: Outcome) -> dict[str, dict[str, float]]:
    sent = ledger.sent.values()
    ways = Counter(one.way for one in sent)
    return {
        "published": {
            **ways,
            "answered with 202": sum(one.accepted for one in sent),
            "tried more than once": sum(len(one.answers) > 1 for one in sent),
            "poison": len(fleet.poison),
        },
        "became": {
            "entries": len(ledger.entries),
            "applied": len(outcome.processed),
            "set aside": len(outcome.letters),
            "versions": sum(map(len, outcome.history.values())),
        },
        "reads": {
            "answered": len(ledger.reads),
            "stale": sum(read.source == "stale" for read in ledger.reads),
            "without an answer": len(ledger.failures),
            "s the longest": round(max(read.answered_at - read.asked_at for read in ledger.reads), 2),
        },
    }


def settle(fleet: Fleet, timeout_s: float) -> dict[str, int]:
    """Wait until nothing waits any more; what still does after the time."""
    left: dict[str, int] = {}

    def nothing_waits() -> bool:
        nonlocal left
        fleet.tend()
        left = {name: count for name, count in (backlog(fleet) | unfinished(fleet)).items() if count}
        return not left

    succeeds_in_time = lambda: eventually(nothing_waits, timeout_s)  # noqa: E731
    try:
        succeeds(succeeds_in_time)
    except AssertionError:
        return left
    return {}


class Progress:
    """One line every ten seconds."""

    EVERY_S = 10.0

    def __init__(self, ledger: Ledger, waits: Backlog, say: Say) -> None:
        self._ledger, self._waits, self._say = ledger, waits, say
        self._due = 0.0

    def tell(self) -> None:
        now = self._ledger.now()
        if now < self._due:
            return
        self._due = now + self.EVERY_S
        last = self._ledger.faults[-1][1] if self._ledger.faults else "-"
        self._say(
            f"{now:5.0f} s  {len(self._ledger.sent):6} events, {self._waits.waiting:4} wait"
            f"  {len(self._ledger.reads):6} reads, {len(self._ledger.failures):4} failed"
            f"  {self._ledger.counts.total():3} faults, {len(self._ledger.violations)} violations  last: {last}"
        )
