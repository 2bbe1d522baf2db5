"""Which rules concern which rows, from the most specific to the least.

A rule names at most one of product, category, department, and at most one of location, currency. That makes
twelve levels; at each a rule and a row meet where one integer key is equal, so matching is sorting.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.domain.columns import ABSENT, Column, Table

_SCOPES = ("product_key", "category_key", "department_key", None)
_PLACES = ("location_key", "currency_number", None)
_PLACE_BITS = 31


def most_specific(rows: Table, rules: Table) -> Column:
    """Index of the one rule that prices each row, `ABSENT` where none does: the level decides, and within
    one level (where the store allows no second rule) the first."""
    found = np.full(len(rows), ABSENT, np.int64)
    for row_keys, rule_indices, rule_keys in _levels(rows, rules):
        at = np.searchsorted(rule_keys, row_keys)
        at[at == len(rule_keys)] = 0
        hit = (found == ABSENT) & (rule_keys[at] == row_keys)
        found[hit] = rule_indices[at[hit]]
    return found


def every_match(rows: Table, rules: Table) -> tuple[Column, Column]:
    """All (row index, rule index) pairs, in no particular order."""
    row_parts, rule_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row_keys, rule_indices, rule_keys in _levels(rows, rules):
        first = np.searchsorted(rule_keys, row_keys, "left")
        count = np.searchsorted(rule_keys, row_keys, "right") - first
        row = np.repeat(np.arange(len(rows)), count)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        row_parts.append(row)
        rule_parts.append(rule_indices[np.repeat(first, count) + nth])
    return np.concatenate(row_parts), np.concatenate(rule_parts)


def _levels(rows: Table, rules: Table) -> Iterator[tuple[Column, Column, Column]]:
    """Per level that has rules: the rows' keys, the level's rule indices, and those rules' keys, sorted."""
    if not len(rules):
        return
    scope_of, place_of = _narrowest(rules, _SCOPES), _narrowest(rules, _PLACES)
    for s, scope in enumerate(_SCOPES):
        for p, place in enumerate(_PLACES):
            members = np.flatnonzero((scope_of == s) & (place_of == p))
            if len(members):
                keys = _keys(rules[members], scope, place)
                order = np.argsort(keys, kind="stable")
                yield _keys(rows, scope, place), members[order], keys[order]


def _narrowest(rules: Table, fields: tuple[str | None, ...]) -> NDArray[np.int64]:
    """Index of the first field that each rule sets; the last, None, is always set."""
    return np.argmax([rules[f] != ABSENT if f else np.ones(len(rules), bool) for f in fields], axis=0)


def _keys(table: Table, scope: str | None, place: str | None) -> Column:
    """One integer per record; rows without a category or department get a key that no rule has."""
    scope_keys = table[scope] if scope else np.zeros(len(table), np.int64)
    place_keys = table[place] if place else np.zeros(len(table), np.int64)
    return np.asarray((scope_keys << _PLACE_BITS) + place_keys)
