"""Market events become prices: claim, change the inputs, reprice, commit, cache; only then acknowledge."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from app.domain.money import SCALE, Currency, to_minor
from app.domain.rows import LIST_PRICE, RowScope, SignalChange, Subjects
from app.domain.rules import Policy, Promotion
from app.domain.sheet import EncodedSheet
from app.errors import InvalidInput, NotFound, ScopeTaken, within
from app.services.ports import Held, SheetCache, Store, TaskQueue, Transaction
from app.services.repricing import reprice, union

DIRECT_ROWS = 2_000
"""An event that concerns more rows than this becomes a recalculation task instead of one transaction."""

FEW = 20
"""So many events, at most, of a row each are applied by plans that suit any."""

MOST_ROWS = 20_000
"""Of a batch, signals are applied together until they concern so many rows, and rules as well; the others have the next
turn. A transaction of more would hold its rows, and its memory, for seconds."""

_SIGNALS = {
    EventType.LIST_PRICE_CHANGED: LIST_PRICE,
    EventType.COST_CHANGED: "cost",
    EventType.COMPETITOR_PRICE_CHANGED: "competitor_price",
    EventType.DEMAND_CHANGED: "demand_bp",
    EventType.STOCK_CHANGED: "stock",
}
_RULES = frozenset({EventType.POLICY_CHANGED, EventType.PROMOTION_CHANGED})


class Positioned(NamedTuple):
    """An event and its place in the stream."""

    stream_id: str
    position: int
    event: Event


class Refused(NamedTuple):
    """An event that cannot be applied, and why. `may_pass`: an older event, not applied yet, may still make room for
    it. Nothing else that events are refused for is changed by events: products and locations are imported, and new
    prices only add to the currencies that an amount has to suit."""

    stream_id: str
    reason: str
    may_pass: bool


class Applied(NamedTuple):
    """By stream id, entries whose event was not processed before (`new`), and those for which a recalculation goes on
    (`wide`), and those that are left for another turn; how many prices changed here."""

    new: set[str]
    wide: set[str]
    sheets: int
    refused: list[Refused]
    left: set[str]


class _SignalChange(NamedTuple):
    """What one event sets: one signal, of these rows (dtype `ROW_KEYS`; None: of more than `DIRECT_ROWS`), to one
    value."""

    item: Positioned
    signal: str
    scope: RowScope
    keys: Table | None
    value: int


@dataclass
class _Effects:
    """What a batch leads to: rows to reprice, with the events that are the cause; rows to cache again, because an
    earlier run may have died before it could; recalculations to go on with."""

    direct: list[Table]
    causes: dict[tuple[int, int], dict[str, None]]
    again: list[Table]
    tasks: list[str]
    rows: int = 0

    def concern(self, event: Event, keys: Table) -> None:
        self.direct.append(keys)
        self.rows += len(keys)
        for key in keys.tolist():
            self.causes[key][event.id] = None


def apply_events(
    held: Held, batch: Sequence[Positioned], *, store: Store, cache: SheetCache, queue: TaskQueue
) -> Applied:
    """Apply events under the lock that is `held`. May be repeated: an event that was processed before changes
    nothing, but its rows are written to the cache again, in case the first run died before it could.

    Raises `LockLost` or `Unavailable`; nothing has been applied then, or all, and a repeat
    is right either way. Afterwards every event may be acknowledged but those that are left, the refused ones as dead
    letters.
    """
    items = _first_of_each(batch)
    effects = _Effects([], defaultdict(dict), [], [])
    with store.transaction() as tx:
        signals = [item for item in items if item.event.type in _SIGNALS]
        others = [item for item in items if item.event.type not in _SIGNALS]
        few = len(items) <= FEW and all(map(_is_of_one_row, items))
        checked = tx.events.ask_fence(held.scope, held.token, few=few)
        if any(item.event.type in _RULES for item in others):
            tx.rules.hold_new_rows()
        elif any(item.event.type is EventType.LIST_PRICE_CHANGED for item in signals):
            tx.rules.hold_rules()
        subjects = tx.catalog.ask_subjects(
            {item.event.subject for item in signals}, {item.event.location for item in signals}
        )
        claimed = tx.events.ask_claim([item.event.id for item in items])
        checked()
        new = claimed()
        changes, refused, left = _signal_changes(tx, signals, subjects())
        for change in changes:
            if change.item.event.id in new:
                _concern(tx, change, effects)
            else:
                _concern_again(tx, change, effects)
        rows = effects.rows
        for item in others:
            if item.event.id not in new:
                continue
            if effects.rows - rows > MOST_ROWS:
                left.append(item)
                continue
            try:
                _change_rules(tx, item, effects)
            except InvalidInput as error:
                refused.append(Refused(item.stream_id, str(error), may_pass=isinstance(error, ScopeTaken)))
        undone = {refusal.stream_id for refusal in refused} | {item.stream_id for item in left}
        for item in items:
            if item.stream_id in undone and item.event.id in new:
                new.discard(item.event.id)
                tx.events.release(item.event.id)
        repeated = [item for item in others if item.event.id not in new and item.stream_id not in undone]
        _concern_rules_again(tx, repeated, effects)
        _set_signals(tx, [change for change in changes if change.item.event.id in new])
        causes = {key: _cause(list(ids)) for key, ids in effects.causes.items()}
        sheets = reprice(tx, union(effects.direct), causes)
        cached = sheets + _not_among(sheets, tx.prices.current(union(effects.again)) if effects.again else [])
    cache.put(cached)
    for task_id in effects.tasks:
        queue.recalculate(task_id)
    return Applied(
        new={item.stream_id for item in items if item.event.id in new},
        wide={item.stream_id for item in items if item.event.id in effects.tasks},
        sheets=len(sheets),
        refused=_with_duplicates(refused, items, batch),
        left=_of_events({item.event.id for item in left}, batch),
    )


def _first_of_each(batch: Iterable[Positioned]) -> list[Positioned]:
    """In the order of the stream, each event id once."""
    first: dict[str, Positioned] = {}
    for item in sorted(batch, key=lambda item: item.position):
        first.setdefault(item.event.id, item)
    return list(first.values())


def _is_of_one_row(item: Positioned) -> bool:
    """But for the name of a category, which looks like a product's."""
    return item.event.type in _SIGNALS and "*" not in (item.event.subject, item.event.location)


def _with_duplicates(
    refused: Sequence[Refused], items: Iterable[Positioned], batch: Iterable[Positioned]
) -> list[Refused]:
    """Whoever has the id of a refused event was not applied either."""
    event_ids = {item.stream_id: item.event.id for item in items}
    of_event = {event_ids[refusal.stream_id]: refusal for refusal in refused}
    return [of_event[item.event.id]._replace(stream_id=item.stream_id) for item in batch if item.event.id in of_event]


def _of_events(event_ids: set[str], batch: Iterable[Positioned]) -> set[str]:
    return {item.stream_id for item in batch if item.event.id in event_ids}


def _signal_changes(
    tx: Transaction, signals: Sequence[Positioned], subjects: Subjects
) -> tuple[list[_SignalChange], list[Refused], list[Positioned]]:
    """What the signals of a batch set, without changing anything yet; and those that are left for another turn."""
    changes: list[_SignalChange] = []
    refused: list[Refused] = []
    rows = 0
    for nth, item in enumerate(signals):
        if rows > MOST_ROWS:
            return changes, refused, list(signals[nth:])
        try:
            change = _signal_change(tx, item, subjects)
        except InvalidInput as error:
            refused.append(Refused(item.stream_id, str(error), may_pass=False))
        else:
            changes.append(change)
            rows += 0 if change.keys is None else len(change.keys)
    return changes, refused, []


def _signal_change(tx: Transaction, item: Positioned, subjects: Subjects) -> _SignalChange:
    event, data = item.event, item.event.typed_data()
    currency = data.currency if isinstance(data, MoneyData) and event.location == "*" else None
    scope = subjects.scope(event.subject, event.location, currency)
    keys: Table | None
    if scope.product_key is not None and scope.location_key is not None:
        # It may be new: that is how a price is first set.
        keys = np.array([(scope.product_key, scope.location_key)], ROW_KEYS)
        currencies = {subjects.locations[event.location][1]}
    else:
        keys = _few(tx, scope)
        currencies = tx.rows.currencies(scope) if isinstance(data, MoneyData) else set()
    return _SignalChange(item, _SIGNALS[event.type], scope, keys, _signal_value(data, currencies))


def _few(tx: Transaction, scope: RowScope) -> Table | None:
    """The keys of a scope's rows; None where it has more than `DIRECT_ROWS`."""
    keys = tx.catalog.keys(scope, DIRECT_ROWS + 1)
    return keys if len(keys) <= DIRECT_ROWS else None


def _signal_value(data: object, currencies: set[Currency]) -> int:
    if isinstance(data, DemandData):
        return int(data.index * SCALE)
    if isinstance(data, StockData):
        return data.quantity
    assert isinstance(data, MoneyData)
    if data.currency is not None and any(currency.code != data.currency for currency in currencies):
        raise InvalidInput(f"{data.currency} is not the location's currency", "data.currency")
    if len(currencies) > 1:
        raise InvalidInput("needed, because the locations have several currencies", "data.currency")
    with within("data.amount"):
        return to_minor(data.amount, currencies.pop().decimals) if currencies else 0


def _concern(tx: Transaction, change: _SignalChange, effects: _Effects) -> None:
    """What is wide is set by a task, batch by batch."""
    event = change.item.event
    if change.keys is None:
        signal = SignalChange(change.signal, change.value, change.item.position)
        _recalculate(tx, event, [change.scope], effects, signal)
    else:
        effects.concern(event, change.keys)


def _concern_again(tx: Transaction, change: _SignalChange, effects: _Effects) -> None:
    """What an earlier run committed, but perhaps did not finish."""
    if change.keys is not None:
        effects.again.append(change.keys)
    elif tx.tasks.exists(change.item.event.id):
        effects.tasks.append(change.item.event.id)
    else:
        effects.again.append(tx.catalog.keys(change.scope, DIRECT_ROWS))


def _set_signals(tx: Transaction, changes: Sequence[_SignalChange]) -> None:
    """Of several that set the same, the last in the stream."""
    rows: dict[str, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
    for change in changes:
        for key in () if change.keys is None else change.keys.tolist():
            rows[change.signal][key] = (change.value, change.item.position)
    # Whoever writes holds the list prices first, all in key order: in the order of the stream, batches would deadlock.
    # To set them holds them, too.
    if rows.keys() - {LIST_PRICE}:
        tx.prices.lock(union(change.keys for change in changes if change.keys is not None))
    for signal in sorted(rows):
        tx.catalog.set_signals(signal, [(*key, *said) for key, said in rows[signal].items()])


def _change_rules(tx: Transaction, item: Positioned, effects: _Effects) -> None:
    """Write what a rule's event, or a recalculation's, says. Raises `InvalidInput`."""
    scopes = _changed_scopes(tx, item)
    tx.events.note_scopes(item.event.id, scopes)
    found = [] if item.event.type is EventType.RECALCULATE else [_few(tx, scope) for scope in scopes]
    few = [keys for keys in found if keys is not None]
    if len(few) < len(scopes) or sum(map(len, few)) > DIRECT_ROWS:
        _recalculate(tx, item.event, scopes, effects)
        return
    for keys in few:
        effects.concern(item.event, keys)


def _concern_rules_again(tx: Transaction, items: Sequence[Positioned], effects: _Effects) -> None:
    """As `_concern_again`, for events that are no signals."""
    noted = tx.events.scopes([item.event.id for item in items]) if items else {}
    for event_id, scopes in noted.items():
        if tx.tasks.exists(event_id):
            effects.tasks.append(event_id)
        else:
            effects.again += [tx.catalog.keys(scope, DIRECT_ROWS) for scope in scopes]


def _recalculate(
    tx: Transaction, event: Event, scopes: Sequence[RowScope], effects: _Effects, signal: SignalChange | None = None
) -> None:
    tx.tasks.create(event.id, scopes, cause=_cause([event.id]), traceparent=event.traceparent, signal=signal)
    effects.tasks.append(event.id)


def _not_among(sheets: list[EncodedSheet], others: list[EncodedSheet]) -> list[EncodedSheet]:
    have = {(sheet.product_id, sheet.location) for sheet in sheets}
    return [sheet for sheet in others if (sheet.product_id, sheet.location) not in have]


def _cause(event_ids: Sequence[str]) -> str:
    return f"event:{event_ids[0]}" if len(event_ids) == 1 else f"events:{','.join(event_ids)}"


def _changed_scopes(tx: Transaction, item: Positioned) -> list[RowScope]:
    """Change the rule that an event is about; the rows that it concerned before, and now. Raises `InvalidInput`."""
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
    if isinstance(data, PromotionData | PolicyData) and data.scopes:
        return _distinct([tx.rules.row_scope(scope) for scope in data.scopes])
    subjects = tx.catalog.subjects({event.subject}, {event.location})
    return [subjects.scope(event.subject, event.location)]


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
