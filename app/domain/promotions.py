"""Promotions over whole columns: stackable ones one after the other, or the best exclusive one alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.domain.arithmetic import Grain, pick, run_lengths, run_ranks, run_starts, times_bp
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

    def places(self, segment: Segment) -> Column:
        """Each candidate's place, from 0, among those of its row that applied, or else among those that did not."""
        applied = (self.outcome[segment] == APPLIED).astype(np.int64)
        starts = run_starts(self.row)
        before = np.cumsum(applied) - applied
        before -= np.repeat(before[starts], run_lengths(starts, len(self.row)))
        return np.asarray(np.where(applied == 1, before, run_ranks(self.row) - before))


def promote(base: Column, grain: Grain, row: Column, rule: Column, promotions: Table, as_of: int) -> Promoted:
    """Apply the candidate pairs (`row`, `rule`) to the scaled prices `base` at the instant `as_of` (ms)."""
    if not len(row):
        none = np.zeros((2, 0), np.int64)
        return Promoted(np.stack([base, base]), row, rule, none, none, np.full(len(base), NEVER, np.int64))
    near = promotions["ends_at"][rule] > as_of - NEAR_MS
    row, rule = _in_order(row[near], rule[near], promotions)
    starts_at, ends_at = promotions["starts_at"][rule], promotions["ends_at"][rule]
    timing = np.where(starts_at > as_of, NOT_STARTED, np.where(ends_at <= as_of, ENDED, APPLIED))
    for_members = promotions["segment"][rule] == Segment.MEMBER
    candidates = _Candidates(
        row,
        pick(grain, row),
        promotions["stackable"][rule] == 1,
        promotions["kind"][rule],
        promotions["value"][rule],
    )
    member = candidates.best(base, timing)
    everyone = candidates.best(base, np.where(for_members, OTHER_SEGMENT, timing)) if for_members.any() else member
    prices, outcome, change = (np.stack(both) for both in zip(everyone, member, strict=True))
    return Promoted(prices, row, rule, outcome, change, _next_boundary(len(base), row, starts_at, ends_at, as_of))


def _in_order(row: Column, rule: Column, promotions: Table) -> tuple[Column, Column]:
    """The pairs by row, then stackable ones before exclusive ones, then by priority, then by key."""
    if not len(row):
        return row, rule
    ordered = np.lexsort((promotions["promotion_key"], promotions["priority"], promotions["stackable"] == 0))
    rank = np.empty_like(ordered)
    rank[ordered] = np.arange(len(ordered))
    row, rank = np.divmod(np.sort(row * len(ordered) + rank[rule]), len(ordered))
    return row, ordered[rank]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The candidate pairs in order, as columns."""

    row: Column
    grain: Grain
    stackable: NDArray[np.bool_]
    kind: Column
    value: Column

    def best(self, base: Column, outcome: Column) -> tuple[Column, Column, Column]:
        """The stack's price, or the best exclusive one's where that is lower (a tie goes to the stack), with
        every pair's outcome and change. The given `outcome` is `APPLIED` where a pair is eligible."""
        row, change = self.row, np.zeros(len(self.row), np.int64)
        eligible = outcome == APPLIED
        if not eligible.any():
            return base, outcome, change
        outcome, prices = outcome.copy(), base.copy()
        pending = np.flatnonzero(eligible & self.stackable)
        rank = run_ranks(row[pending])
        for nth in range(int(rank.max(initial=-1)) + 1):
            pairs = pending[rank == nth]
            before = prices[row[pairs]]
            prices[row[pairs]] = after = self._discounted(before, pairs)
            change[pairs] = after - before

        exclusive = np.flatnonzero(eligible & ~self.stackable)
        if len(exclusive):
            rows = row[exclusive]
            alone = self._discounted(base[rows], exclusive)
            outcome[exclusive] = np.where(alone < base[rows], STACK_WAS_BETTER, NO_EFFECT)
            wins = _first_lowest(rows, alone)
            wins = wins[alone[wins] < prices[rows[wins]]]
            prices[rows[wins]] = alone[wins]
            beaten = np.zeros(len(base), bool)
            beaten[rows[wins]] = True
            beaten_pairs = eligible & beaten[row]
            outcome[beaten_pairs], change[beaten_pairs] = EXCLUSIVE_WAS_BETTER, 0
            outcome[exclusive[wins]], change[exclusive[wins]] = APPLIED, (alone - base[rows])[wins]
        outcome[(outcome == APPLIED) & (change == 0)] = NO_EFFECT
        return prices, outcome, change

    def _discounted(self, price: Column, pairs: NDArray[np.intp]) -> Column:
        """Each price after its promotion: never higher than before, never below zero, and never overtaking a
        lower price that went through the same promotion. That is why a member never pays more than everyone."""
        kind, value = self.kind[pairs], self.value[pairs]
        amount, after = value * SCALE, price
        if (these := kind == PromotionKind.PERCENT).any():
            rate = SCALE - np.where(these, value, 0)
            after = np.where(these, times_bp(price, rate, pick(self.grain, pairs)), after)
        if (these := kind == PromotionKind.AMOUNT).any():
            after = np.where(these, np.maximum(price - amount, 0), after)
        if (these := kind == PromotionKind.FIXED).any():
            after = np.where(these, np.minimum(price, amount), after)
        return after


def _first_lowest(row: Column, price: Column) -> NDArray[np.intp]:
    """Per row (sorted) the index of its lowest price, the first of equal ones."""
    starts = run_starts(row)
    lowest = np.minimum.reduceat(price, starts)
    equal = np.flatnonzero(price == np.repeat(lowest, run_lengths(starts, len(row))))
    return equal[run_starts(row[equal])]


def _next_boundary(n: int, row: Column, starts_at: Column, ends_at: Column, as_of: int) -> Column:
    boundary = np.full(n, NEVER, np.int64)
    if len(row):
        ahead = np.where(starts_at > as_of, starts_at, np.where(ends_at > as_of, ends_at, NEVER))
        starts = run_starts(row)
        boundary[row[starts]] = np.minimum.reduceat(ahead, starts)
    return boundary
