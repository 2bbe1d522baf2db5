"""Which inbox an event goes to: what concerns one product is kept apart from what concerns many."""

import pytest

from app.domain.events import EventType
from app.domain.scopes import CATALOGUE, PARTITIONS, scope_of

NARROW = [
    EventType.LIST_PRICE_CHANGED,
    EventType.COST_CHANGED,
    EventType.COMPETITOR_PRICE_CHANGED,
    EventType.DEMAND_CHANGED,
    EventType.STOCK_CHANGED,
    EventType.PROMOTION_CHANGED,
]


def test_all_events_of_a_product_have_one_scope_whatever_they_say() -> None:
    scopes = {scope_of(type_, "P-1") for type_ in NARROW}
    assert len(scopes) == 1
    assert scopes != {CATALOGUE}


@pytest.mark.parametrize(
    ("type_", "subject"),
    [
        (EventType.RECALCULATE, "P-1"),
        (EventType.POLICY_CHANGED, "P-1"),
        *((type_, "*") for type_ in NARROW),
    ],
)
def test_what_concerns_many_products_has_a_scope_of_its_own(type_: EventType, subject: str) -> None:
    assert scope_of(type_, subject) == CATALOGUE


def test_products_are_spread_evenly_and_the_same_way_by_every_process() -> None:
    scopes = [scope_of(EventType.COST_CHANGED, f"P-{n}") for n in range(8000)]
    counts = {scope: scopes.count(scope) for scope in set(scopes)}
    assert set(counts) == {f"products:{n}" for n in range(PARTITIONS)}
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert scope_of(EventType.COST_CHANGED, "Käse ☕") == "products:6"
    assert scope_of(EventType.COST_CHANGED, "P-1") == "products:7"
