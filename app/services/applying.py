"""Market events become prices: claim, change the inputs, reprice, commit, cache; only then acknowledge."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from app.domain.columns import ROW_KEYS, Table
from app.domain.events import (
    DemandData,
    Event,
    EventType,
    MoneyData,
    PolicyData,
    PromotionData,
    StockData,
)
from app.domain.money import SCALE, to_minor
from app.domain.rows import LIST_PRICE, RowScope
from app.domain.rules import Policy, Promotion
from app.domain.sheet import PriceSheet
from app.errors import InvalidInput, NotFound, within
from app.services.ports import Clock, Locks, SheetCache, Store, TaskQueue, Transaction
from app.services.repricing import reprice, union

DIRECT_ROWS = 2_000
"""An event that concerns more rows than this becomes a recalculation task instead of one transaction."""

LOCK_WAIT_S = 5.0

_SIGNALS = {
    EventType.LIST_PRICE_CHANGED: LIST_PRICE,
    EventType.COST_CHANGED: "cost",
    EventType.COMPETITOR_PRICE_CHANGED: "competitor_price",
    EventType.DEMAND_CHANGED: "demand_bp",
    EventType.STOCK_CHANGED: "stock",
}


class Positioned(NamedTuple):
    """An event and its place in the stream."""

    stream_id: str
    position: int
    event: Event


class Refused(NamedTuple):
    """An event that can never be applied, and why."""

    stream_id: str
    reason: str


class Applied(NamedTuple):
    """`new` counts events that were not processed before, `sheets` the prices that changed."""

    new: int
    sheets: int
    refused: list[Refused]


def apply_events(
    scope: str,
    batch: Sequence[Positioned],
    *,
    store: Store,
    cache: SheetCache,
    locks: Locks,
    queue: TaskQueue,
    clock: Clock,
) -> Applied:
    """Apply events under the lock on `scope`. May be repeated: an event that was processed before changes
    nothing, but its rows are written to the cache again, in case the first run died before it could.

    Raises `LockHeld`, `LockLost` or `Unavailable`; nothing has been applied then, or all, and a repeat
    is right either way. Afterwards every event may be acknowledged, the refused ones as dead letters.
    """
    batch = sorted(batch, key=lambda item: item.position)
    with locks.hold(scope, wait_s=LOCK_WAIT_S) as token:
        refused: list[Refused] = []
        with store.transaction() as tx:
            tx.events.check_fence(scope, token)
            new = tx.events.claim({item.event.id for item in batch})
            direct: list[Table] = []
            causes: dict[tuple[int, int], dict[str, None]] = defaultdict(dict)
            again: list[Table] = []
            tasks: list[str] = []
            seen: set[str] = set()
            _lock_signal_rows(tx, [item.event for item in batch if item.event.id in new])
            for item in batch:
                fresh = item.event.id in new and item.event.id not in seen
                seen.add(item.event.id)
                try:
                    scopes = _change_inputs(tx, item) if fresh else tx.events.scopes(item.event.id)
                except InvalidInput as error:
                    refused.append(Refused(item.stream_id, str(error)))
                    if fresh:
                        new.discard(item.event.id)
                        tx.events.release(item.event.id)
                    continue
                if fresh:
                    tx.events.note_scopes(item.event.id, scopes)
                for n, rows in enumerate(scopes):
                    total = tx.catalog.count(rows)
                    if total > DIRECT_ROWS or item.event.type is EventType.RECALCULATE:
                        task_id = item.event.id if n == 0 else f"{item.event.id}:{n + 1}"
                        tx.tasks.create(task_id, rows, total, item.event.traceparent)
                        tasks.append(task_id)
                    else:
                        keys = tx.catalog.keys(rows, DIRECT_ROWS)
                        (direct if fresh else again).append(keys)
                        for key in keys.tolist() if fresh else ():
                            causes[key][item.event.id] = None
            sheets = reprice(tx, union(direct), clock, {key: _cause(list(ids)) for key, ids in causes.items()})
            cached = sheets + _not_among(sheets, tx.prices.current(union(again)) if again else [])
        cache.put(cached)
    for task_id in tasks:
        queue.recalculate(task_id)
    return Applied(len(new), len(sheets), refused)


def _lock_signal_rows(tx: Transaction, events: Sequence[Event]) -> None:
    """Hold the rows that a batch sets signals of, in key order. Its events come in the order of the stream, and
    would lock the rows in that order: a deadlock with every batch that comes in another."""
    keys: list[Table] = []
    for event in events if len(events) > 1 else ():
        if event.type in _SIGNALS:
            with suppress(InvalidInput):  # it is refused in its turn
                keys += [tx.catalog.keys(scope, DIRECT_ROWS) for scope in _scopes(tx, event)]
    if keys:
        tx.prices.lock(union(keys))


def _not_among(sheets: list[PriceSheet], others: list[PriceSheet]) -> list[PriceSheet]:
    have = {(sheet.product_id, sheet.location) for sheet in sheets}
    return [sheet for sheet in others if (sheet.product_id, sheet.location) not in have]


def _cause(event_ids: Sequence[str]) -> str:
    return f"event:{event_ids[0]}" if len(event_ids) == 1 else f"events:{','.join(event_ids)}"


def _change_inputs(tx: Transaction, item: Positioned) -> list[RowScope]:
    """Write what the event says; the rows that it concerns. Raises `InvalidInput`."""
    event, data = item.event, item.event.typed_data()
    if isinstance(data, PromotionData) and data.promotion is not None:
        before = _promotion_scope(tx, data.promotion.promotion_id)
        tx.rules.save_promotion(data.promotion, item.position)
        return _distinct([*before, tx.rules.row_scope(data.promotion)])
    if isinstance(data, PolicyData) and data.policy is not None:
        before = _policy_scope(tx, data.policy.policy_id)
        tx.rules.save_policy(data.policy, item.position)
        return _distinct([*before, tx.rules.row_scope(data.policy)])
    if isinstance(data, PromotionData) and data.removed is not None:
        return _row_scopes(tx, [tx.rules.remove_promotion(data.removed, item.position)])
    if isinstance(data, PolicyData) and data.removed is not None:
        return _row_scopes(tx, [tx.rules.remove_policy(data.removed, item.position)])
    scopes = _scopes(tx, event)
    if (signal := _SIGNALS.get(event.type)) is not None:
        for scope in scopes:
            keys = _signal_keys(tx, scope)
            if len(keys):
                values = _signal_values(tx, data, keys)
                tx.catalog.set_signals(
                    signal,
                    [(*key, value, item.position) for key, value in zip(keys.tolist(), values, strict=True)],
                )
    return scopes


def _signal_keys(tx: Transaction, scope: RowScope) -> Table:
    """The rows a signal is for. One product at one location may be new: that is how a price is first set."""
    if scope.product_key is not None and scope.location_key is not None:
        return np.array([(scope.product_key, scope.location_key)], ROW_KEYS)
    return tx.catalog.keys(scope, limit=2**31)


def _signal_values(tx: Transaction, data: object, keys: Table) -> list[int]:
    if isinstance(data, DemandData):
        return [int(data.index * SCALE)] * len(keys)
    if isinstance(data, StockData):
        return [data.quantity] * len(keys)
    assert isinstance(data, MoneyData)
    known = tx.catalog.currencies()
    used = {known[key] for key in keys["location_key"].tolist()}
    if data.currency is not None and any(currency.code != data.currency for currency in used):
        raise InvalidInput(f"{data.currency} is not the location's currency", "data.currency")
    if len(used) > 1:
        raise InvalidInput("needed, because the locations have several currencies", "data.currency")
    with within("data.amount"):
        return [to_minor(data.amount, used.pop().decimals)] * len(keys)


def _scopes(tx: Transaction, event: Event) -> list[RowScope]:
    """The rows that an event names, without changing anything. Raises `InvalidInput`."""
    data = event.typed_data()
    if isinstance(data, PromotionData | PolicyData):
        if data.scopes:
            return _distinct([tx.rules.row_scope(scope) for scope in data.scopes])
        rule = getattr(data, "promotion", None) or getattr(data, "policy", None)
        if rule is not None:
            return [tx.rules.row_scope(rule)]
    currency = data.currency if isinstance(data, MoneyData) and event.location == "*" else None
    scope = tx.catalog.subject_scope(event.subject, event.location, currency)
    if scope is None:
        raise InvalidInput(f"there is no {event.subject!r} at {event.location!r}")
    return [scope]


def _promotion_scope(tx: Transaction, promotion_id: str) -> list[RowScope]:
    try:
        return [tx.rules.row_scope(tx.rules.promotion(promotion_id))]
    except NotFound:
        return []


def _policy_scope(tx: Transaction, policy_id: str) -> list[RowScope]:
    try:
        return [tx.rules.row_scope(tx.rules.policy(policy_id))]
    except NotFound:
        return []


def _row_scopes(tx: Transaction, rules: Sequence[Policy | Promotion | None]) -> list[RowScope]:
    return [tx.rules.row_scope(rule) for rule in rules if rule is not None]


def _distinct(scopes: list[RowScope]) -> list[RowScope]:
    return list(dict.fromkeys(scopes))
