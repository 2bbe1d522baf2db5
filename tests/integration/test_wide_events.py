"""Events that concern too many rows for one transaction become tasks; what comes later, and is narrower, stays."""

from collections.abc import Callable

import pytest

from app.adapters.locks import Locks
from app.domain.events import Event, EventType
from app.domain.positions import position
from app.domain.task import TaskState
from app.services.applying import DIRECT_ROWS, Applied, Positioned, apply_events
from app.services.ports import Held
from tests.support.recalculating import Jobs

Apply = Callable[..., Applied]

PRODUCTS = DIRECT_ROWS + 100
"""More than that many rows at each of the two locations."""


@pytest.fixture
def wide(jobs: Jobs) -> Jobs:
    jobs.add_products(11, PRODUCTS)
    jobs.service = jobs.another(batch_rows=500, held_rows=500, part_rows=1000)
    return jobs


@pytest.fixture
def apply(wide: Jobs) -> Apply:
    """Applies events, given as (stream id, event), in one batch."""

    def run(*events: tuple[str, Event]) -> Applied:
        batch = [Positioned(stream_id, position(stream_id), event) for stream_id, event in events]
        applied: list[Applied] = []

        def work(held: Held) -> bool:
            applied.append(apply_events(held, batch, store=wide.store, cache=wide.cache, queue=wide))
            return False

        Locks(wide.valkey, 30).in_rounds("scope", work, 10)
        return applied[0]

    return run


def list_price(event_id: str, amount: float, subject: str = "*", location: str = "NY") -> Event:
    return Event(
        id=event_id, type=EventType.LIST_PRICE_CHANGED, subject=subject, location=location, data={"amount": amount}
    )


def test_a_wide_signal_is_a_task_and_a_later_narrow_one_in_between_stays(wide: Jobs, apply: Apply) -> None:
    apply(("1-0", list_price("before", 1, "P-2")))
    wide.hints.clear()
    assert apply(("5-0", list_price("wide", 5))).sheets == 0
    assert list(wide.hints) == [("wide", None)]
    assert wide.task("wide").state is TaskState.QUEUED
    wide.act()
    apply(("7-0", list_price("after", 7, "P-9")), ("3-0", list_price("late", 3, "P-8")))
    wide.act_on_all()
    task = wide.task("wide")
    assert (task.state, task.done, task.event_id) == (TaskState.SUCCEEDED, PRODUCTS, "wide")
    apply(("4-0", list_price("later", 4, "P-1")))
    assert wide.sql(
        "SELECT amount, count(*), min(product_key), max(position) FROM list_prices WHERE location_key = 1 GROUP BY 1"
        " ORDER BY 1"
    ) == [(500, PRODUCTS - 1, 1, position("5-0")), (700, 1, 9, position("7-0"))]
    causes = wide.sql("SELECT version, everyone_price, cause FROM price_history WHERE product_key = 9 ORDER BY 1")
    assert causes == [(1, 700, "event:after")]
    assert wide.sql("SELECT count(*) FROM list_prices WHERE location_key = 2 AND position > 0") == [(0,)]


def test_a_repeat_of_a_wide_event_hints_its_task_and_changes_nothing(wide: Jobs, apply: Apply) -> None:
    event = ("5-0", Event(id="w", type=EventType.STOCK_CHANGED, location="NY", subject="*", data={"quantity": 3}))
    assert len(apply(event).new) == 1
    wide.hints.clear()
    assert len(apply(event).new) == 0
    assert list(wide.hints) == [("w", None)]
    wide.act_on_all()
    assert wide.sql("SELECT stock, count(*) FROM signals GROUP BY 1") == [(3, PRODUCTS)]
    assert len(apply(event).new) == 0
    wide.act_on_all()
    assert wide.task("w").done == PRODUCTS


def test_money_for_several_currencies_is_refused_also_where_it_would_be_a_task(wide: Jobs, apply: Apply) -> None:
    (refused,) = apply(("1-0", list_price("both", 5, location="*"))).refused
    assert "several currencies" in refused.reason
    in_yen = Event(
        id="yen", type=EventType.LIST_PRICE_CHANGED, subject="*", location="*", data={"amount": 7, "currency": "JPY"}
    )
    assert apply(("2-0", in_yen)).refused == []
    wide.act_on_all()
    assert wide.sql("SELECT location_key, amount FROM list_prices GROUP BY 1, 2 ORDER BY 1") == [(1, 1000), (2, 7)]


def test_a_rule_of_several_scopes_is_one_task_with_the_events_id(wide: Jobs, apply: Apply) -> None:
    """It was about coffee, and is about all that is priced in dollars now: rows of both are looked at."""

    def promotion(event_id: str, **scope: str) -> Event:
        rule = {"promotion_id": "p", "name": "P", "kind": "percent", "value": 50, **scope}
        return Event(id=event_id, type=EventType.PROMOTION_CHANGED, data={"promotion": rule})

    apply(("1-0", promotion("narrow", category="Coffee")))
    assert wide.sql("SELECT count(*) FROM tasks") == [(0,)]
    apply(("2-0", promotion("wide", currency="USD")))
    wide.act_on_all()
    assert wide.sql("SELECT task_id FROM tasks") == [("wide",)]
    assert wide.task("wide").done == PRODUCTS + 1
    members = wide.sql(
        "SELECT location_key, member_price, count(*) FROM price_history JOIN price_sheets"
        " USING (product_key, location_key, version) GROUP BY 1, 2 ORDER BY 1"
    )
    assert members == [(1, 500, PRODUCTS), (2, 1000, 1)]


def test_rules_for_the_same_rows_share_a_task(wide: Jobs, apply: Apply) -> None:
    def policy(event_id: str, markup: int) -> Event:
        rule = {"policy_id": "p", "name": "P", "kind": "list", "max_change_percent": markup}
        return Event(id=event_id, type=EventType.POLICY_CHANGED, data={"policy": rule})

    apply(("1-0", policy("first", 1)))
    apply(("2-0", policy("second", 2)))
    assert wide.task("second").joined == "first"
    wide.act_on_all()
    assert [wide.task(name).state for name in ("first", "second")] == [TaskState.SUCCEEDED] * 2
