"""Changes by hand: whatever clocks say, they are made, and their events with them."""

import asyncio
import time
from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from app.adapters.store import Store
from app.domain.events import Event, decode_event
from app.domain.positions import position_at
from app.domain.rules import Promotion, PromotionKindName
from app.errors import NotFound, Unavailable
from app.services.rule_changes import RuleChanges, remove_promotion, save_promotion

TOMORROW = position_at(time.time_ns() // 1_000_000 + 86_400_000)


@dataclass
class Sender:
    sent: list[Event] = field(default_factory=list)
    away: bool = False

    async def publish(self, event: Event) -> tuple[str, bool]:
        if self.away:
            raise Unavailable("away")
        self.sent.append(event)
        return "1-0", True


def promotion(percent: int) -> Promotion:
    return Promotion(promotion_id="p", name="P", kind=PromotionKindName.PERCENT, value=Decimal(percent))


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.fixture
def changes(store: Store, sender: Sender) -> RuleChanges:
    return RuleChanges(store, sender, lambda: None)


def stored_percent(store: Store) -> Decimal:
    with store.transaction() as tx:
        return tx.rules.promotion("p").value


def test_a_change_is_made_though_an_event_came_from_a_clock_that_is_ahead(
    store: Store, changes: RuleChanges, sender: Sender
) -> None:
    with store.transaction() as tx:
        tx.rules.save_promotion(promotion(10), TOMORROW)
    assert asyncio.run(save_promotion(promotion(20), False, changes=changes)) == promotion(20)
    assert stored_percent(store) == 20
    assert asyncio.run(remove_promotion("p", changes=changes)) == promotion(20)
    with pytest.raises(NotFound):
        stored_percent(store)
    assert asyncio.run(save_promotion(promotion(30), True, changes=changes)) == promotion(30)
    assert stored_percent(store) == 30
    assert len(sender.sent) == 3


def test_removing_what_is_not_there_is_said_and_changes_nothing(
    store: Store, changes: RuleChanges, sender: Sender
) -> None:
    with pytest.raises(NotFound):
        asyncio.run(remove_promotion("p", changes=changes))
    assert sender.sent == []
    with store.transaction() as tx:
        assert tx.rules.save_promotion(promotion(10), 1), "no removal was noted"


def test_an_event_of_a_later_time_is_newer_than_a_change_by_hand(store: Store, changes: RuleChanges) -> None:
    asyncio.run(save_promotion(promotion(20), True, changes=changes))
    with store.transaction() as tx:
        assert not tx.rules.save_promotion(promotion(10), TOMORROW - position_at(2 * 86_400_000))
        assert tx.rules.save_promotion(promotion(30), TOMORROW)


def test_the_event_of_a_change_waits_in_the_outbox_while_redis_is_away(
    store: Store, changes: RuleChanges, sender: Sender
) -> None:
    sender.away = True
    asyncio.run(save_promotion(promotion(20), True, changes=changes))
    with store.transaction() as tx:
        ((event_id, event),) = tx.events.outbox(10)
    assert decode_event(event).id == event_id
    assert decode_event(event).data["scopes"] != []
