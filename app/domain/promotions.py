"""Promotions over whole columns: stackable ones one after the other, or the best exclusive one alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.arithmetic import times_bp
from app.domain.columns import NEVER, Column, PromotionKind, Segment, Table
from app.domain.money import SCALE

NEAR_MS = 24 * 3600 * 1000
"""A promotion that ended this long ago or less is still named among the rejected ones."""

OUTCOMES = (
    "applied",
    "other_segment",
    "not_started",
    "ended",
    "no_effect",
    "exclusive_was_better",
    "stack_was_better",
)
APPLIED, OTHER_SEGMENT, NOT_STARTED, ENDED, NO_EFFECT, EXCLUSIVE_WAS_BETTER, STACK_WAS_BETTER = range(7)


@dataclass(frozen=True, slots=True)
class Promoted:
    """What promotions did to `n` rows, for each of the two segments.

    `prices` has shape (2, n). The m candidates, ordered by row and then by the order of application, are
    `row` and `rule` (indices); `outcome` (index into `OUTCOMES`) and `change` (scaled, never positive) have
    shape (2, m). `valid_until` is the next instant (ms) at which a window opens or closes, or `NEVER`.
    """

    prices: Column
    row: Column
    rule: Column
    outcome: Column
    change: Column
    valid_until: Column


def promote(base: Column, grain: Column, row: Column, rule: Column, promotions: Table, as_of: int) -> Promoted:
    """Apply the candidate pairs (`row`, `rule`) to the scaled prices `base` at the instant `as_of` (ms)."""
    known = promotions[rule]
    near = known["ends_at"] > as_of - NEAR_MS
    row, rule, known = row[near], rule[near], known[near]
    order = np.lexsort((known["promotion_key"], known["priority"], known["stackable"] == 0, row))
    row, rule, known = row[order], rule[order], known[order]

    prices = np.empty((2, len(base)), np.int64)
    outcome = np.empty((2, len(row)), np.int64)
    change = np.zeros((2, len(row)), np.int64)
    timing = np.where(known["starts_at"] > as_of, NOT_STARTED, np.where(known["ends_at"] <= as_of, ENDED, APPLIED))
    for segment in Segment:
        member_only = (known["segment"] == Segment.MEMBER) & (segment == Segment.EVERYONE)
        first = np.where(member_only, OTHER_SEGMENT, timing)
        prices[segment], outcome[segment], change[segment] = _best(base, grain, row, known, first)
    return Promoted(prices, row, rule, outcome, change, _next_boundary(len(base), row, known, as_of))


def _best(base: Column, grain: Column, row: Column, known: Table, outcome: Column) -> tuple[Column, Column, Column]:
    """The stack's price, or the best exclusive one's where that is lower. A tie goes to the stack."""
    outcome, change = outcome.copy(), np.zeros(len(row), np.int64)
    eligible = outcome == APPLIED
    stackable = known["stackable"] == 1

    stacked = base.copy()
    pending = np.flatnonzero(eligible & stackable)
    for nth in _rank_rounds(row[pending]):
        pairs = pending[nth]
        rows = row[pairs]
        after = _discounted(stacked[rows], grain[rows], known[pairs])
        change[pairs] = after - stacked[rows]
        stacked[rows] = after

    exclusive = np.flatnonzero(eligible & ~stackable)
    rows = row[exclusive]
    alone = _discounted(base[rows], grain[rows], known[exclusive])
    by_price = np.lexsort((np.arange(len(rows)), alone, rows))
    winner = by_price[np.diff(rows[by_price], prepend=-1) != 0]
    winner = winner[alone[winner] < stacked[rows[winner]]]

    outcome[exclusive] = STACK_WAS_BETTER
    won = np.zeros(len(base), bool)
    won[rows[winner]] = True
    lost = eligible & won[row]
    outcome[lost] = EXCLUSIVE_WAS_BETTER
    change[lost] = 0
    outcome[exclusive[winner]] = APPLIED
    change[exclusive[winner]] = alone[winner] - base[rows[winner]]
    prices = stacked
    prices[rows[winner]] = alone[winner]
    outcome[(outcome == APPLIED) & (change == 0)] = NO_EFFECT
    return prices, outcome, change


def _rank_rounds(row: Column) -> list[NDArray[np.intp]]:
    """Split pairs that are sorted by row into rounds that hold each row at most once: firsts, seconds, …"""
    starts = np.flatnonzero(np.diff(row, prepend=-1) != 0)
    lengths = np.diff(np.append(starts, len(row)))
    rank = np.arange(len(row)) - np.repeat(starts, lengths)
    return [np.flatnonzero(rank == nth) for nth in range(int(lengths.max(initial=0)))]


def _discounted(price: Column, grain: Column, promotion: Table) -> Column:
    """Each price after its promotion: never higher than before, never below zero, and never overtaking a
    lower price that went through the same promotion. That is why a member never pays more than everyone."""
    kind, value = promotion["kind"], promotion["value"]
    percent = kind == PromotionKind.PERCENT
    cut = times_bp(price, SCALE - np.where(percent, value, 0), grain)
    less = np.maximum(price - value * SCALE, 0)
    fixed = np.minimum(price, value * SCALE)
    return np.where(percent, cut, np.where(kind == PromotionKind.AMOUNT, less, fixed))


def _next_boundary(n: int, row: Column, known: Table, as_of: int) -> Column:
    boundary = np.full(n, NEVER, np.int64)
    for instant in (known["starts_at"], known["ends_at"]):
        ahead = instant > as_of
        np.minimum.at(boundary, row[ahead], instant[ahead])
    return boundary
