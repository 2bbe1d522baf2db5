"""Repricing: no update is lost, nothing is written twice, nothing old overwrites anything new."""

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np
import psycopg
import pytest
import redis

from app.adapters.locks import Held, Locks
from app.adapters.store import Store, Transaction
from app.bootstrap import now_ms
from app.domain.columns import Table
from app.domain.events import Event, EventType
from app.domain.money import SCALE
from app.domain.positions import position
from app.domain.rules import Policy, PolicyKindName
from app.domain.sheet import EncodedSheet, decode_sheet
from app.services.applying import Applied, Positioned, apply_events
from app.services.ports import Turn
from app.services.repricing import out_of_date, reprice
from tests.support.sheets import spelled_out
from tests.support.waiting import eventually

Row = Callable[..., Table]
Apply = Callable[..., tuple[Applied, "Written", "Queued"]]
AT_COST = Policy(
    policy_id="at-cost", name="At cost", kind=PolicyKindName.COST_PLUS, max_change_percent=Decimal(10), currency="USD"
)
"""The price is the cost, but within a tenth of the list price: it depends on both."""


class Written:
    """A cache that keeps what it was given."""

    def __init__(self) -> None:
        self.sheets: list[EncodedSheet] = []

    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        self.sheets += sheets

    def prices(self) -> list[int]:
        return [spelled_out(sheet.payload).everyone.tiers[0].final // SCALE for sheet in self.sheets]


class Queued:
    """A queue that keeps what it was given."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def recalculate(self, task_id: str, part: int | None = None) -> None:
        self.tasks.append(task_id)


def set_signal(tx: Transaction, row: Table, signal: str, value: int, at: int = 1) -> None:
    ((product, location),) = row.tolist()
    tx.catalog.set_signals(signal, [(product, location, value, at)])


def history(store: Store, product_id: str = "P-1", location: str = "NY") -> list[tuple[int, int, str]]:
    """(version, price, cause), oldest first."""
    with store.transaction() as tx:
        entries = tx.sheets.history(product_id, location, None, 100)
    return [(entry.version, entry.everyone_price, entry.cause) for entry in reversed(entries)]


def test_two_transactions_on_one_row_never_lose_an_update(database_url: str, store: Store, row: Row) -> None:
    """The second waits for the first, and then sees what it wrote."""
    key = row()
    with store.transaction() as tx:
        tx.rules.save_policy(AT_COST, 1)
        set_signal(tx, key, "cost", 1000)
        reprice(tx, key, "start")

    def dearer() -> None:
        with store.transaction() as tx:
            set_signal(tx, key, "list_price", 5000)
            reprice(tx, key, "list price")

    second = threading.Thread(target=dearer)
    with store.transaction() as tx:
        set_signal(tx, key, "cost", 10_000)
        reprice(tx, key, "cost")
        second.start()
        eventually(lambda: somebody_waits(database_url))
    second.join()
    assert history(store) == [(1, 1000, "start"), (2, 1100, "cost"), (3, 5500, "list price")]


def somebody_waits(database_url: str) -> bool:
    """Whether a transaction in this database waits for another's lock."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database_url) as connection:
        return connection.execute(waiting).rowcount > 0


def test_many_at_once_leave_the_versions_without_gap_and_the_last_input_in_force(store: Store, row: Row) -> None:
    key = row()
    start = threading.Barrier(6)

    def work(worker: int) -> None:
        start.wait()
        for n in range(10):
            at = 1 + n * 6 + worker
            with store.transaction() as tx:
                set_signal(tx, key, "list_price", 1000 + at, at)
                reprice(tx, key, f"{at}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = history(store)
    assert [version for version, _, _ in versions] == list(range(1, len(versions) + 1))
    assert [price for _, price, _ in versions] == sorted({price for _, price, _ in versions}), "never backwards"
    assert versions[-1][1] == 1060


def test_the_time_is_that_of_the_database_once_the_rows_are_held(
    database_url: str, store: Store, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose own clock is wrong, or that has waited for its rows, brings no ended promotion back."""
    monkeypatch.setattr("time.time_ns", lambda: 0)
    key, versions = row(), []

    def late() -> None:
        with store.transaction() as tx:
            set_signal(tx, key, "list_price", 3000, at=2)
            versions.append((reprice(tx, key, "late"), tx.now_ms()))

    waiting = threading.Thread(target=late)
    with store.transaction() as tx:
        set_signal(tx, key, "list_price", 2000)
        waiting.start()
        eventually(lambda: somebody_waits(database_url))
        held_until = tx.now_ms()
        reprice(tx, key, "first")
    waiting.join()
    (((sheet,), ended),) = versions
    assert held_until <= decode_sheet(sheet.payload).computed_at <= ended


def test_what_did_not_change_is_not_written(store: Store, row: Row) -> None:
    key = row()
    with store.transaction() as tx:
        assert len(reprice(tx, key, "first")) == 1
    with store.transaction() as tx:
        assert reprice(tx, key, "again") == []
        set_signal(tx, key, "cost", 700)  # no policy looks at it
        assert reprice(tx, key, "cost") == []
        assert reprice(tx, np.zeros(0, key.dtype), "nothing") == []
    assert history(store) == [(1, 1000, "first")]


def test_a_rule_that_is_saved_again_or_moves_no_price_makes_no_new_version(store: Store, row: Row) -> None:
    key = row()

    def save(position: int, **changed: object) -> None:
        with store.transaction() as tx:
            tx.rules.save_policy(AT_COST.model_copy(update=changed), position)
            reprice(tx, key, f"{position}")

    with store.transaction() as tx:
        set_signal(tx, key, "cost", 1050)
    save(1)
    save(2)
    save(3, max_change_percent=Decimal(20))
    assert history(store) == [(1, 1050, "1")]
    save(4, name="At cost and no more")
    assert history(store) == [(1, 1050, "1"), (2, 1050, "4")]


def test_a_recalculation_that_looked_before_an_event_does_not_overwrite_it(store: Store, row: Row) -> None:
    key = row()
    with store.transaction() as late:
        stale = out_of_date(late, late.prices.to_price(key).stored, now_ms())
        assert len(stale) == 1
        with store.transaction() as tx:
            set_signal(tx, key, "list_price", 2000)
            reprice(tx, key, "event")
        assert reprice(late, stale, "recalculation") == []
    assert history(store) == [(1, 2000, "event")]


def test_an_older_signal_never_replaces_a_newer_one(store: Store, row: Row) -> None:
    key = row()
    with store.transaction() as tx:
        set_signal(tx, key, "list_price", 2000, at=10)
        set_signal(tx, key, "list_price", 3000, at=9)
        reprice(tx, key, "both")
        set_signal(tx, key, "list_price", 4000, at=10)
        reprice(tx, key, "the same event again")
    assert [price for _, price, _ in history(store)] == [2000, 4000]


@pytest.fixture
def apply(store: Store, valkey: redis.Redis) -> Apply:
    """Applies events, given as (stream id, event), as a task does."""

    def run(*events: tuple[str, Event], scope: str = "scope") -> tuple[Applied, Written, Queued]:
        cache, queue = Written(), Queued()
        batch = [Positioned(stream_id, position(stream_id), event) for stream_id, event in events]
        applied: list[Applied] = []

        def work(held: Held) -> bool:
            applied.append(apply_events(held, batch, store=store, cache=cache, queue=queue))
            return False

        assert Locks(valkey, 30).in_rounds(scope, work, 10) is Turn.DONE
        return applied[0], cache, queue

    return run


def list_price(event_id: str, amount: float, subject: str = "P-1", location: str = "NY") -> Event:
    return Event(
        id=event_id, type=EventType.LIST_PRICE_CHANGED, subject=subject, location=location, data={"amount": amount}
    )


def test_a_batch_is_applied_in_the_order_of_the_stream_whatever_its_own(store: Store, apply: Apply) -> None:
    applied, cache, _ = apply(("3-0", list_price("c", 3)), ("1-0", list_price("a", 1)), ("2-0", list_price("b", 2)))
    assert (len(applied.new), applied.sheets, applied.refused) == (3, 1, [])
    assert cache.prices() == [300]
    assert [price for _, price, _ in history(store)] == [300]


def test_batches_that_set_the_same_rows_in_other_orders_wait_for_each_other(
    store: Store, apply: Apply, database_url: str
) -> None:
    """Where they did not, PostgreSQL would end one of two. Most rows have no price yet, and cannot be held before."""
    products = [f"P-{number}" for number in range(1, 21)]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO products (product_id, name, department_key, category_key)"
            " SELECT 'P-' || n, 'Tea', 1, 2 FROM generate_series(3, 20) n"
        )
    kinds = [
        (EventType.LIST_PRICE_CHANGED,),
        (EventType.LIST_PRICE_CHANGED,),
        (EventType.COST_CHANGED,),
        (EventType.STOCK_CHANGED, EventType.LIST_PRICE_CHANGED),
    ]
    field_of = defaultdict(lambda: "amount", {EventType.STOCK_CHANGED: "quantity"})
    start, done = threading.Barrier(len(kinds)), []

    def work(worker: int) -> None:
        order = random.Random(worker)
        for n in range(15):
            said = [(product, kind) for product in order.sample(products, 20) for kind in kinds[worker]]
            events = [
                Event(id=f"{worker}-{n}-{at}", type=kind, subject=product, location="NY", data={field_of[kind]: at + 1})
                for at, (product, kind) in enumerate(said)
            ]
            start.wait(20)
            apply(*((f"{n + 1}-{at}", event) for at, event in enumerate(events)), scope=f"{worker}")
        done.append(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(len(kinds)))


def test_each_row_has_the_events_that_concern_it_as_its_cause(store: Store, apply: Apply) -> None:
    apply(
        ("1-0", list_price("a", 1)),
        ("2-0", list_price("b", 2, "P-2")),
        ("3-0", list_price("c", 3)),
        ("4-0", list_price("refused", 1.005)),
    )
    assert history(store, "P-1") == [(1, 300, "events:a,c")]
    assert history(store, "P-2") == [(1, 200, "event:b")]


def test_an_event_that_concerns_a_row_twice_is_its_cause_once(store: Store, apply: Apply) -> None:
    """A rule whose scope changes concerns what it was about before and what it is about now."""

    def promotion(event_id: str, percent: int, **scope: str) -> Event:
        rule = {"promotion_id": "p", "name": "P", "kind": "percent", "value": percent, **scope}
        return Event(id=event_id, type=EventType.PROMOTION_CHANGED, data={"promotion": rule})

    apply(("1-0", promotion("narrow", 10, product_id="P-1", location="NY")))
    apply(("2-0", promotion("wide", 20, location="NY")))
    assert history(store, "P-1") == [(1, 900, "event:narrow"), (2, 800, "event:wide")]
    assert history(store, "P-2") == [(1, 800, "event:wide")]


def test_a_repeat_writes_nothing_but_the_cache(store: Store, apply: Apply) -> None:
    """The first run may have died after its commit, before it wrote to the cache."""
    event = ("1-0", list_price("a", 7))
    apply(event)
    applied, cache, _ = apply(event)
    assert (len(applied.new), applied.sheets) == (0, 0)
    assert cache.prices() == [700]
    assert len(history(store)) == 1


def test_a_refused_event_is_not_processed_and_is_refused_again(store: Store, apply: Apply) -> None:
    bad = ("2-0", list_price("bad", 1.005))
    for n in range(2):
        applied, _, _ = apply(("1-0", list_price("good", 1)), bad)
        assert [refused.stream_id for refused in applied.refused] == ["2-0"]
        assert "data.amount" in applied.refused[0].reason
        assert len(applied.new) == 1 - n
    with store.transaction() as tx:
        assert (tx.events.processed("good"), tx.events.processed("bad")) == (True, False)


def promotion_event(event_id: str, **data: object) -> Event:
    return Event(id=event_id, type=EventType.PROMOTION_CHANGED, data=data)


def half_off(product_id: str) -> dict[str, object]:
    return {"promotion_id": "half", "name": "Half", "kind": "percent", "value": 50, "product_id": product_id}


def test_a_promotion_that_was_removed_before_its_creation_arrived_stays_removed(store: Store, apply: Apply) -> None:
    apply(("1-0", list_price("price", 10)))
    apply(("3-0", promotion_event("removal", removed="half")))
    apply(("2-0", promotion_event("creation", promotion=half_off("P-1"))))
    assert [price for _, price, _ in history(store)] == [1000]
    apply(("4-0", promotion_event("again", promotion=half_off("P-1"))))
    with store.transaction() as tx:
        assert tx.rules.promotion("half").product_id == "P-1"


def test_a_repeat_caches_also_the_rows_that_a_rule_has_left(store: Store, apply: Apply) -> None:
    """The first run may have died before it wrote to the cache, and a moved rule no longer says where it was."""
    apply(("1-0", list_price("a", 10)), ("2-0", list_price("b", 10, "P-2")))
    apply(("3-0", promotion_event("put", promotion=half_off("P-1"))))
    moved = ("4-0", promotion_event("move", promotion=half_off("P-2")))
    apply(moved)
    _, cache, _ = apply(moved)
    assert {sheet.product_id: spelled_out(sheet.payload).member.tiers[0].final for sheet in cache.sheets} == {
        "P-1": 10_000_000,
        "P-2": 5_000_000,
    }
