"""One run: a system and a second host, load and readers, faults by plan, and the accounts at the end."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.local.addresses import is_ready
from tests.chaos import faults
from tests.chaos.backlog import Backlog, backlog, unfinished
from tests.chaos.figures import figures
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import Outcome, all_violations
from tests.chaos.ledger import Ledger, Violation
from tests.chaos.load import Load, Witness
from tests.chaos.market import DECIMALS, Market, Product
from tests.chaos.plan import plan
from tests.chaos.readers import Readers
from tests.chaos.striking import BACK_S, Strikes
from tests.support.shop import IMPATIENT, shop_of_its_own
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
    figures: dict[str, dict[str, float]]


@contextmanager
def fleet_with_shop(products: int) -> Iterator[tuple[Fleet, list[Product]]]:
    """A system with two hosts and a few products; both are stopped at the end."""
    with shop_of_its_own("chaos", env=ENV) as shop:
        made = [
            Product(shop.product(dict.fromkeys(DECIMALS, 1000), category), category)
            for category in (CATEGORIES[n % len(CATEGORIES)] for n in range(products))
        ]
        fleet = Fleet(shop.system)
        fleet.some_product = made[0].product_id
        try:
            fleet.add_second_host()
            eventually(lambda: all(is_ready(url, timeout_s=1) for url in fleet.urls.values()), BACK_S)
            yield fleet, made
        finally:
            fleet.stop()


def run(options: Options, say: Say) -> Result:
    """Everything, from nothing to the accounts."""
    path = options.folder / f"ledger-{options.seed}.jsonl"
    with fleet_with_shop(options.products) as (fleet, products), closing(Ledger(path)) as ledger:
        market = Market(products, options.seed)
        settled = _break_everything(options, fleet, ledger, market, say)
        violations, outcome = all_violations(fleet, ledger, products, market.rows)
        shutil.copytree(fleet.system.data / "logs", options.folder / f"logs-{options.seed}", dirs_exist_ok=True)
        return Result(options, ledger, outcome, violations, figures(fleet, ledger, outcome) | {"settled": settled})


def _break_everything(options: Options, fleet: Fleet, ledger: Ledger, market: Market, say: Say) -> dict[str, float]:
    """Faults under load, and then peace; how long it took until nothing waited any more, and how much did before."""
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
    Strikes(fleet, ledger, strikes).carry_out(options.seconds, Progress(ledger, waits, say).tell)
    load.stop()
    began = ledger.now()
    if left := settle(fleet, SETTLE_S):
        ledger.broken(Violation("the backlog goes back to nothing", f"{left} after {SETTLE_S:g} s", at=began))
    seconds = round(ledger.now() - began, 1)
    waits.stopping.set()
    readers.stop()
    witness.stop()
    return {"s": seconds, "most waiting": waits.highest}


def settle(fleet: Fleet, timeout_s: float) -> dict[str, int]:
    """Wait until nothing waits any more; what still does after the time."""
    left: dict[str, int] = {}

    def nothing_waits() -> bool:
        nonlocal left
        fleet.tend()
        left = {name: count for name, count in (backlog(fleet) | unfinished(fleet)).items() if count}
        return not left

    with suppress(AssertionError):
        eventually(nothing_waits, timeout_s)
    return left


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
