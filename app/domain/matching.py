"""Which rules concern which rows, from the most specific to the least.

A rule names at most one of product, category, department, and at most one of location, currency. That makes
twelve levels; at each a rule and a row meet where one integer key is equal, so matching is sorting.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.domain.arithmetic import run_lengths, run_starts
from app.domain.columns import ABSENT, Column, Table

_SCOPES = ("product_key", "category_key", "department_key", None)
_PLACES = ("location_key", "currency_number", None)
_PLACE_BITS = 31


def most_specific(rows: Table, rules: Table) -> Column:
    """Index of the one rule that prices each row, `ABSENT` where none does: the level decides, and within
    one level (where the store allows no second rule) the first."""
    found = np.full(len(rows), ABSENT, np.int64)
    for row, first, _, members in _levels(rows, rules):
        open_ = found[row] == ABSENT
        found[row[open_]] = members[first[open_]]
    return found


def every_match(rows: Table, rules: Table) -> tuple[Column, Column]:
    """All (row index, rule index) pairs, in no particular order."""
    row_parts, rule_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row, first, count, members in _levels(rows, rules):
        nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        row_parts.append(np.repeat(row, count))
        rule_parts.append(members[np.repeat(first, count) + nth])
    return np.concatenate(row_parts), np.concatenate(rule_parts)


def _levels(rows: Table, rules: Table) -> Iterator[tuple[Column, Column, Column, Column]]:
    """Per level that has rules: the rows that meet any, ascending, and which of `members`, the level's rule
    indices, each meets: so many (`count`) from `first` on."""
    if not len(rules):
        return
    level_of = _narrowest(rules, _SCOPES) * len(_PLACES) + _narrowest(rules, _PLACES)
    for level in np.flatnonzero(np.bincount(level_of)).tolist():
        scope, place = _SCOPES[level // len(_PLACES)], _PLACES[level % len(_PLACES)]
        members = np.flatnonzero(level_of == level)
        keys = _keys(rules, scope, place)[members]
        order = np.argsort(keys, kind="stable")
        members, keys = members[order], keys[order]
        starts = run_starts(keys)
        wanted = _keys(rows, scope, place)
        at = np.minimum(np.searchsorted(keys[starts], wanted), len(starts) - 1)
        row = np.flatnonzero(keys[starts][at] == wanted)
        at = at[row]
        yield row, starts[at], run_lengths(starts, len(keys))[at], members


def _narrowest(rules: Table, fields: tuple[str | None, ...]) -> NDArray[np.int64]:
    """Index of the first field that each rule sets; the last, None, is always set."""
    index = np.full(len(rules), len(fields) - 1, np.int64)
    for nth, field in reversed(list(enumerate(fields[:-1]))):
        index[rules[field] != ABSENT] = nth
    return index


def _keys(table: Table, scope: str | None, place: str | None) -> Column:
    """One integer per record; rows without a category or department get a negative one, which no rule has."""
    scope_keys = table[scope] << _PLACE_BITS if scope else np.zeros(len(table), np.int64)
    return np.asarray(scope_keys + table[place] if place else scope_keys)
