"""Which inbox an event goes to: what concerns one product is kept apart from what concerns many."""

import pytest

from app.domain.events import Event, EventType
from listener.scopes import CATALOGUE, PARTITIONS, scope_of


def event(type_: EventType, subject: str, location: str = "NY", **data: object) -> Event:
    return Event(id="e", type=type_, subject=subject, location=location, data=data)


def test_all_events_of_a_product_have_one_scope_whatever_they_say_and_where() -> None:
    scopes = {
        scope_of(event(EventType.LIST_PRICE_CHANGED, "P-1", amount=1)),
        scope_of(event(EventType.COST_CHANGED, "P-1", "LA", amount=1)),
        scope_of(event(EventType.STOCK_CHANGED, "P-1", "*", quantity=1)),
        scope_of(event(EventType.PROMOTION_CHANGED, "P-1")),
    }
    assert len(scopes) == 1
    assert scopes != {CATALOGUE}


@pytest.mark.parametrize(
    "wide",
    [
        event(EventType.RECALCULATE, "P-1"),
        event(EventType.POLICY_CHANGED, "P-1"),
        event(EventType.PROMOTION_CHANGED, "*"),
        event(EventType.DEMAND_CHANGED, "*", index=1),
    ],
)
def test_what_concerns_many_products_has_a_scope_of_its_own(wide: Event) -> None:
    assert scope_of(wide) == CATALOGUE


def test_products_are_spread_evenly_and_the_same_way_by_every_process() -> None:
    scopes = [scope_of(event(EventType.COST_CHANGED, f"P-{n}", amount=1)) for n in range(8000)]
    counts = {scope: scopes.count(scope) for scope in set(scopes)}
    assert set(counts) == {f"products:{n}" for n in range(PARTITIONS)}
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert scope_of(event(EventType.COST_CHANGED, "Käse ☕", amount=1)) == "products:6"
    assert scope_of(event(EventType.COST_CHANGED, "P-1", amount=1)) == "products:7"
