"""Changing policies and promotions by hand: the rule and the event that reprices its scope, together.

The event goes into an outbox in the transaction that changes the rule, and from there into the stream, so
that neither can be without the other. The caller sends it at once; listeners send what was left over.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar
from uuid import uuid4

from app.domain.events import Event, EventType, encode_event
from app.domain.positions import position_at
from app.domain.rules import Policy, Promotion, Scope
from app.errors import NotFound, Unavailable
from app.services.ports import Store, Transaction


class EventSender(Protocol):
    async def publish(self, event: Event) -> tuple[str, bool]: ...


Rule = TypeVar("Rule", Policy, Promotion)
Position = int


async def save_policy(policy: Policy, new: bool, *, changes: "RuleChanges") -> Policy:
    """Create (`new`) or replace. Raises `AlreadyExists`, `InvalidInput`."""

    def change(tx: Transaction, position: Position) -> tuple[Policy, list[Scope]]:
        before = _before(tx.rules.policy, policy.policy_id)
        tx.rules.save_policy(policy, position, new=new, by_hand=True)
        return tx.rules.policy(policy.policy_id), [*before, policy]

    return await changes.make(EventType.POLICY_CHANGED, change)


async def save_promotion(promotion: Promotion, new: bool, *, changes: "RuleChanges") -> Promotion:
    """Create (`new`) or replace. Raises `AlreadyExists`, `InvalidInput`."""

    def change(tx: Transaction, position: Position) -> tuple[Promotion, list[Scope]]:
        before = _before(tx.rules.promotion, promotion.promotion_id)
        tx.rules.save_promotion(promotion, position, new=new, by_hand=True)
        return tx.rules.promotion(promotion.promotion_id), [*before, promotion]

    return await changes.make(EventType.PROMOTION_CHANGED, change)


async def remove_policy(policy_id: str, *, changes: "RuleChanges") -> Policy:
    """Raises `NotFound`."""

    def change(tx: Transaction, position: Position) -> tuple[Policy, list[Scope]]:
        removed = tx.rules.remove_policy(policy_id, position, by_hand=True)
        if removed is None:
            raise NotFound(f"there is no policy {policy_id!r}")
        return removed, [removed]

    return await changes.make(EventType.POLICY_CHANGED, change)


async def remove_promotion(promotion_id: str, *, changes: "RuleChanges") -> Promotion:
    """Raises `NotFound`."""

    def change(tx: Transaction, position: Position) -> tuple[Promotion, list[Scope]]:
        removed = tx.rules.remove_promotion(promotion_id, position, by_hand=True)
        if removed is None:
            raise NotFound(f"there is no promotion {promotion_id!r}")
        return removed, [removed]

    return await changes.make(EventType.PROMOTION_CHANGED, change)


class RuleChanges:
    """Makes a change and its event one."""

    def __init__(self, store: Store, sender: EventSender, traceparent: Callable[[], str | None]) -> None:
        self._store, self._sender, self._traceparent = store, sender, traceparent

    async def make(self, type_: EventType, change: Callable[[Transaction, Position], tuple[Rule, list[Scope]]]) -> Rule:
        """Run `change` in a transaction, and send an event that reprices the scopes it gives."""
        event_id = str(uuid4())
        traceparent = self._traceparent()

        def commit() -> tuple[Rule, Event]:
            with self._store.transaction() as tx:
                rule, scopes = change(tx, position_at(tx.now_ms()))
                names = [{name: getattr(scope, name) for name in Scope.model_fields} for scope in scopes]
                event = Event(id=event_id, type=type_, data={"scopes": names}, traceparent=traceparent)
                tx.events.put_outbox(event_id, encode_event(event))
                return rule, event

        rule, event = await asyncio.to_thread(commit)
        try:
            await self._sender.publish(event)
            await asyncio.to_thread(self._sent, event_id)
        except Unavailable:
            pass  # it is in the outbox; a listener sends it
        return rule

    def _sent(self, event_id: str) -> None:
        with self._store.transaction() as tx:
            tx.events.drop_outbox([event_id])


def _before(get: Callable[[str], Scope], rule_id: str) -> list[Scope]:
    try:
        return [get(rule_id)]
    except NotFound:
        return []
