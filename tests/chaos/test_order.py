"""Many events, shuffled, duplicated and delivered late, over several listeners and workers: the prices are those of
the same events applied one after the other."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.backlog import Backlog
from tests.chaos.faults import read_by_a_consumer_that_dies
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import (
    Outcome,
    events_are_applied_or_set_aside,
    expected,
    inputs_are_the_oracles,
    nothing_is_applied_twice,
    prices_are_the_oracles,
)
from tests.chaos.ledger import Ledger
from tests.chaos.load import Witness
from tests.chaos.market import DECIMALS, SIGNALS, Event, Market, Product
from tests.chaos.oracle import Oracle, rule_of
from tests.chaos.run import fleet_with_shop, settle

COUNT = 10_000
SEED = 7
CHUNK = 250
"""Entries of one pipeline; now and then somebody reads some and dies."""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Fleet, list[Product]]]:
    with fleet_with_shop(24) as made:
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        yield ledger


def duplicated(events: list[Event], products: list[Product], dice: random.Random) -> list[Event]:
    """A third of them once more, later. Not behind another event about the same: which of its two places an event has
    is then no matter, and a stream knows only places."""
    oracle = Oracle(products)
    about: list[set[object]] = [
        {(row, event["type"]) for row in oracle.rows(event)} if event["type"] in SIGNALS else {rule_of(event)}
        for event in events
    ]
    again: dict[int, list[Event]] = {}
    for n, event in enumerate(events):
        if dice.random() < 1 / 3:
            until = min(n + 300, len(events))
            rival = next((later for later in range(n + 1, until) if about[n] & about[later]), until)
            again.setdefault(dice.randint(n, rival - 1), []).append(event)
    return [one for n, event in enumerate(events) for one in (event, *again.get(n, []))]


def test_shuffled_and_duplicated_events_give_the_prices_of_the_events_in_order(
    world: tuple[Fleet, list[Product]], ledger: Ledger, record_property: Callable[[str, object], None]
) -> None:
    fleet, products = world
    dice = random.Random(SEED)
    market = Market(products, SEED, SIGNALS | {"policy.changed": 4})
    witness, waits = Witness(fleet, ledger), Backlog(fleet, ledger)
    witness.start()
    events = [*market.first_prices(), *(market.next() for _ in range(COUNT - len(market.rows)))]
    dice.shuffle(events)
    entries = duplicated(events, products, dice)
    for event in events:
        ledger.send(event, "stream")
    began = ledger.now()
    for start in range(0, len(entries), CHUNK):
        with fleet.broker.pipeline(transaction=False) as pipeline:
            for event in entries[start : start + CHUNK]:
                pipeline.xadd("events", {"event": json.dumps(event)})
            pipeline.execute()
        if dice.random() < 0.2:
            with read_by_a_consumer_that_dies(fleet, 20):
                pass
    left = settle(fleet, 300)
    record_property("entries_per_s", round(len(entries) / (ledger.now() - began)))
    readers = {consumer["name"] for consumer in fleet.broker.xinfo_consumers("events", "repricing")}
    witness.stop()
    waits.look()
    outcome = Outcome(fleet)
    oracle = expected(ledger, outcome, products)
    assert left == {}
    assert len(ledger.entries) == len(entries)
    assert outcome.processed >= {event["id"] for event in events}
    assert outcome.letters == []
    assert sum(not name.startswith("dead-") for name in readers) >= 2
    assert Counter(entry.event_id for entry in ledger.entries.values()).most_common(1)[0][1] == 2
    found = [
        *events_are_applied_or_set_aside(ledger, outcome),
        *nothing_is_applied_twice(ledger, outcome),
        *inputs_are_the_oracles(fleet, oracle),
        *prices_are_the_oracles(fleet, oracle, market.rows),
    ]
    assert found == [], "\n".join(map(str, found[:10]))
    assert len(DECIMALS) * len(products) == len(oracle.policies.keys() | set(market.rows))
