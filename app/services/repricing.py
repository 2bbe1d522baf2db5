"""From changed inputs to stored sheets: the one way in which a price changes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from app.domain.columns import NEW_SHEETS, ROW_KEYS, Column, RowKey, Rules, Segment, Table, packed, unpacked
from app.domain.encoding import encode_rows
from app.domain.money import SCALE
from app.domain.rows import RowScope, StoredInputs
from app.domain.sheet import EncodedSheet, Labels
from app.domain.sheets import Sheets, compute_sheets, digests
from app.services.ports import Held, SheetCache, Store, Transaction

Causes = Mapping[tuple[int, int], str]
"""Why rows are repriced, by (product key, location key)."""


def reprice(tx: Transaction, keys: Table, cause: str | Causes) -> list[EncodedSheet]:
    """Compute these rows (dtype `ROW_KEYS`) from what is committed or in `tx`, and store what differs, with its
    cause: one for all rows, or each row's own.

    The rows stay locked until `tx` ends, so whoever reprices a row after somebody else sees what that one
    saw and more: an older state never overwrites a newer one. The time, too, is read when they are locked, and from the
    one clock that all share. Gives the new sheets, for the cache.
    """
    if not len(keys):
        return []
    tx.prices.lock(keys)
    return _store_changed(tx, *tx.prices.to_price(keys), cause)


def reprice_between(
    tx: Transaction,
    after: RowKey,
    until: RowKey,
    limit: int,
    scopes: Sequence[RowScope],
    cause: str,
    *,
    most_change: bool = False,
) -> tuple[Table, list[EncodedSheet]]:
    """Reprice the first `limit` rows of any scope with after < key <= until; their keys, and the new sheets.

    They are looked at before any is held. Where most of them turn out to change, or are expected to by `most_change`,
    all are held and read as the one range that they are, which costs less than going from row to row.
    """
    if not most_change:
        stored = tx.prices.inputs_between(after, until, limit, scopes)
        stale = out_of_date(tx, stored, tx.now_ms())
        if len(stale) * 2 <= len(stored.inputs):
            return row_keys(stored.inputs), reprice(tx, stale, cause)
    stored = tx.prices.inputs_between(after, until, limit, scopes, hold=True)
    as_of = tx.now_ms()
    rules = tx.rules.rules(stored.inputs, as_of)
    return row_keys(stored.inputs), _store_changed(tx, stored, rules, None, as_of, cause)


def _store_changed(
    tx: Transaction, stored: StoredInputs, rules: Rules, labels: Labels | None, as_of: int, cause: str | Causes
) -> list[EncodedSheet]:
    """Compute rows that are held, and store what differs. Without labels, they are looked up for what does."""
    sheets = compute_sheets(stored.inputs, rules, as_of)
    fresh = digests(sheets, rules)
    changed = _changed(stored, fresh)
    if not len(changed):
        return []
    labels = labels or labels_for(tx, sheets, rules, changed)
    new = _new(sheets, stored.versions, fresh, as_of, changed)
    encoded = encode_rows(sheets, rules, labels, new["version"], as_of, changed)
    causes = cause if isinstance(cause, str) else [cause[key] for key in row_keys(new).tolist()]
    tx.prices.store(new, [sheet.payload for sheet in encoded], causes)
    return encoded


def out_of_date(tx: Transaction, stored: StoredInputs, as_of: int) -> Table:
    """Keys of the rows whose stored sheet is not what the formula gives now. Takes no locks: what it finds
    is then given to `reprice`, which looks again."""
    rules = tx.rules.rules(stored.inputs, as_of)
    fresh = digests(compute_sheets(stored.inputs, rules, as_of), rules)
    return row_keys(stored.inputs[_changed(stored, fresh)])


def reprice_due(held: Held, store: Store, cache: SheetCache, limit: int) -> tuple[int, bool]:
    """Reprice sheets whose time is over (a promotion began or ended), at most `limit`, under the lock that is `held`;
    how many, and whether there may be more."""
    with store.transaction() as tx:
        tx.events.check_fence(held.scope, held.token)
        due = np.sort(tx.prices.due(tx.now_ms(), limit), order=["product_key", "location_key"])
        new = reprice(tx, due, "boundary")
    cache.put(new)
    return len(new), bool(new) and len(due) == limit


def current_versions(store: Store, keys: Table) -> Column:
    """The newest stored version of each of these rows (dtype `ROW_KEYS`), 0 where there is none."""
    with store.transaction() as tx:
        return tx.prices.versions(keys)


def _changed(stored: StoredInputs, fresh: Column) -> Column:
    return np.flatnonzero((fresh != stored.digests) | (stored.versions == 0))


def _new(sheets: Sheets, versions: Column, fresh: Column, as_of: int, chosen: Column) -> Table:
    """What is stored of the rows `chosen` (indices), dtype `NEW_SHEETS`."""
    new = np.empty(len(chosen), NEW_SHEETS)
    for key in ROW_KEYS.names or ():
        new[key] = sheets.inputs[key][chosen]
    new["version"], new["digest"], new["computed_at"] = versions[chosen] + 1, fresh[chosen], as_of
    new["valid_until"] = sheets.promoted.valid_until[chosen]
    new["list_price"], new["base_price"] = sheets.inputs["list_price"][chosen], _whole(sheets.steps[-1, chosen])
    new["everyone_price"] = _whole(sheets.final[Segment.EVERYONE, chosen, 0])
    new["member_price"] = _whole(sheets.final[Segment.MEMBER, chosen, 0])
    return new


def _whole(scaled: Column) -> Column:
    """Scaled amounts in whole minor units, half up, as `unscale` makes them one by one."""
    return (scaled + SCALE // 2) // SCALE


def labels_for(tx: Transaction, sheets: Sheets, rules: Rules, chosen: Column) -> Labels:
    """The names that the sheets of the rows `chosen` (indices) mention."""
    promoted = sheets.promoted
    mentioned = promoted.rule[np.isin(promoted.row, chosen)]
    return tx.prices.labels(
        products=sheets.inputs["product_key"][chosen],
        locations=sheets.inputs["location_key"][chosen],
        policies=rules.policies["policy_key"][sheets.policy[chosen][sheets.policy[chosen] >= 0]],
        promotions=rules.promotions["promotion_key"][mentioned],
    )


def row_keys(table: Table) -> Table:
    """The keys of a table that has them among its fields."""
    keys = np.empty(len(table), ROW_KEYS)
    keys["product_key"], keys["location_key"] = table["product_key"], table["location_key"]
    return keys


def union(parts: Iterable[Table]) -> Table:
    """Every key once, in key order, which is the order that locks are taken in."""
    return unpacked(np.unique(np.concatenate([np.zeros(0, np.int64), *map(packed, parts)])))
