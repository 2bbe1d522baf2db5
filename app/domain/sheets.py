"""The one formula: rows and rules in, price sheets out, as columns of integers.

    list price → policy → guardrails (maximum change, ceiling, minimum margin, floor) → rounding = base price
    → promotions, per segment → quantity tiers → floor again = final price

A worker calls it with a hundred thousand rows, a cache miss with one. The floor wins over everything: over
the ceiling, over rounding, over promotions and tiers; rounding stays within every guardrail or does not happen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.domain.arithmetic import (
    Grain,
    hash_rows,
    pick,
    round_to,
    run_ranks,
    times_bp,
    times_bp_down,
    times_bp_up,
)
from app.domain.columns import ABSENT, POLICIES, PRICE_INPUTS, Column, PolicyKind, Rules, Segment, Table
from app.domain.matching import every_match, most_specific
from app.domain.money import MAX_PRICE, SCALE
from app.domain.promotions import Promoted, promote

STEPS = ("list_price", "policy", "max_change", "ceiling", "min_margin", "floor", "rounding")
"""What the rows of `Sheets.steps` stand for: the price after each."""

POLICY_REASONS = (
    "",
    "no_demand_index",
    "no_competitor_price",
    "no_cost",
    "no_stock",
    "stock_below_threshold",
)
"""Why a policy left the list price alone; the index is `Sheets.policy_reason`. Where a signal is missing it is
the policy's kind."""

_STOCK_BELOW_THRESHOLD = POLICY_REASONS.index("stock_below_threshold")

_SIGNALS = {
    PolicyKind.MARKET: "demand_bp",
    PolicyKind.COMPETITOR: "competitor_price",
    PolicyKind.COST_PLUS: "cost",
    PolicyKind.MARKDOWN: "stock",
}

MAX_FACTOR_BP = 50_000
"""The demand index moves a price to five times the list price at most."""


@dataclass(frozen=True, slots=True)
class Sheets:
    """Price sheets of `n` rows. Amounts are scaled (see `money`), instants in ms since 1970.

    `tier_*` have shape (n, t): the first tier is always quantity 1 at no discount; where a row has fewer
    tiers than the widest, `tier_quantity` is 0. `before_floor` and `final` have shape (2, n, t), by segment.
    """

    inputs: Table
    policy: Column
    policy_reason: Column
    steps: Column
    floor: Column
    line_rounding: Column
    promoted: Promoted
    tier_quantity: Column
    tier_off_bp: Column
    before_floor: Column
    final: Column

    def __len__(self) -> int:
        return len(self.inputs)


def compute_sheets(inputs: Table, rules: Rules, as_of: int) -> Sheets:
    """Price every row of `inputs` (dtype `PRICE_INPUTS`) under `rules` at the instant `as_of` (ms).

    Pure: equal arguments give equal sheets, and a batch gives what its rows give alone.
    """
    assert inputs.dtype == PRICE_INPUTS
    policy = most_specific(inputs, rules.policies)
    chosen = _Chosen(rules.policies, policy)
    line_rounding = chosen["line_rounding"]
    grain: Grain = np.where(line_rounding == 1, 1, SCALE) if line_rounding.any() else SCALE

    after_policy, reason = _policy_price(inputs, chosen, grain)
    steps, floor = _guard_and_round(inputs, chosen, after_policy, grain)
    row, rule = every_match(inputs, rules.promotions)
    promoted = promote(steps[-1], grain, row, rule, rules.promotions, as_of)
    tier_quantity, tier_off_bp = _tiers(rules, policy)
    before_floor = promoted.prices[:, :, None]
    if tier_off_bp.shape[1] > 1:
        before_floor = times_bp(before_floor, SCALE - tier_off_bp, pick(grain, np.s_[:, None]))
    return Sheets(
        inputs=inputs,
        policy=policy,
        policy_reason=reason,
        steps=steps,
        floor=floor,
        line_rounding=line_rounding,
        promoted=promoted,
        tier_quantity=tier_quantity,
        tier_off_bp=tier_off_bp,
        before_floor=before_floor,
        final=np.maximum(before_floor, floor[:, None]),
    )


def digests(sheets: Sheets, rules: Rules) -> Column:
    """A 64-bit hash per row of all that the sheet says, and of nothing else: equal digests mean that storing the
    sheet again would change nothing (two sheets in 2^64 aside)."""
    state = hash_rows(_said_of_rows(sheets, _Chosen(rules.policies, sheets.policy)))
    for nth in range(1, sheets.tier_quantity.shape[1]):
        quantity = sheets.tier_quantity[:, nth]
        said = (state.view(np.int64), quantity, *sheets.before_floor[:, :, nth], *sheets.final[:, :, nth])
        state = np.where(quantity > 0, hash_rows(said), state)
    promoted = sheets.promoted
    if len(promoted.row):
        named = [rules.promotions[field][promoted.rule] for field in ("promotion_key", "name_hash")]
        places = (promoted.places(segment) for segment in Segment)
        # Wrapping addition: each candidate says what its place in the sheet is, so the set says it all.
        np.add.at(state, promoted.row, hash_rows((*named, *places, *promoted.outcome, *promoted.change)))
    return state.view(np.int64)


def _said_of_rows(sheets: Sheets, chosen: "_Chosen") -> Iterator[Column]:
    yield from (chosen["policy_key"], chosen["name_hash"], sheets.policy_reason, sheets.line_rounding, sheets.floor)
    yield from sheets.steps
    yield from (*sheets.before_floor[:, :, 0], *sheets.final[:, :, 0], sheets.promoted.valid_until)


_NO_POLICY = np.zeros(1, POLICIES)
"""What a row that none prices has: the list price, unguarded."""
for _guardrail in ("min_margin_bp", "floor", "ceiling", "max_change_bp"):
    _NO_POLICY[_guardrail] = ABSENT


class _Chosen:
    """The policy of each row, by column."""

    def __init__(self, policies: Table, index: Column) -> None:
        # The default is last, so that an index of `ABSENT`, which is -1, selects it.
        self._policies, self._index = np.empty(len(policies) + 1, POLICIES), index
        self._policies[:-1], self._policies[-1:] = policies, _NO_POLICY

    def __getitem__(self, field: str) -> Column:
        return np.asarray(self._policies[field][self._index])


def _policy_price(inputs: Table, chosen: _Chosen, grain: Grain) -> tuple[Column, Column]:
    """The price after the policy, and why (index into `POLICY_REASONS`) where the policy did not apply."""
    kind, rate = chosen["kind"], chosen["rate_bp"]
    listed = price = inputs["list_price"] * SCALE
    reason = np.zeros(len(inputs), np.int64)
    for this, signal in _SIGNALS.items():
        mine = kind == this
        if not mine.any():
            continue
        given = inputs[signal]
        known = mine & (given != ABSENT)
        reason[mine & ~known] = this
        match this:
            case PolicyKind.MARKET:
                # The index's distance from 1, weighted, in whole basis points, half up.
                moved = ((given - SCALE) * rate + SCALE // 2) // SCALE
                result = times_bp(listed, np.clip(SCALE + moved, 0, MAX_FACTOR_BP), grain)
            case PolicyKind.COMPETITOR:
                undercut = times_bp(given * SCALE, SCALE - rate, grain) - chosen["amount"] * SCALE
                result = np.maximum(undercut, 0)
            case PolicyKind.COST_PLUS:
                result = times_bp(given * SCALE, SCALE + rate, grain)
            case _:
                plenty = given >= chosen["threshold"]
                reason[known & ~plenty] = _STOCK_BELOW_THRESHOLD
                result = np.where(plenty, times_bp(listed, SCALE - rate, grain), listed)
        price = np.where(known, result, price)
    return price, reason


def _guard_and_round(inputs: Table, chosen: _Chosen, after_policy: Column, grain: Grain) -> tuple[Column, Column]:
    """All `STEPS`, shape (7, n), and the floor that holds to the end, shape (n,); scaled."""
    listed = inputs["list_price"] * SCALE
    least, most = _change_bounds(listed, chosen["max_change_bp"], grain)
    bounded = np.minimum(np.maximum(after_policy, least), most)
    ceiling = chosen["ceiling"]
    ceiling = np.where(ceiling != ABSENT, ceiling, MAX_PRICE) * SCALE
    capped = np.minimum(bounded, ceiling)
    margin_price = _margin_price(inputs["cost"], chosen["min_margin_bp"])
    margined = np.maximum(capped, margin_price)
    floor_price = np.maximum(chosen["floor"], 0) * SCALE
    floored = np.maximum(margined, floor_price)
    floor = np.maximum(margin_price, floor_price)
    rounded = _to_ending(floored, chosen, np.maximum(floor, least), np.minimum(ceiling, most))
    return np.stack([listed, after_policy, bounded, capped, margined, floored, rounded]), floor


def _change_bounds(listed: Column, change_bp: Column, grain: Grain) -> tuple[Column | int, Column | int]:
    """The lowest and the highest price that are no further than `change_bp` from the list price."""
    limited = change_bp != ABSENT
    if not limited.any():
        return 0, MAX_PRICE * SCALE
    least = times_bp_up(listed, np.maximum(SCALE - change_bp, 0), grain)
    most = times_bp_down(listed, SCALE + change_bp, grain)
    return np.where(limited, least, 0), np.where(limited, most, MAX_PRICE * SCALE)


def _margin_price(cost: Column, margin_bp: Column) -> Column:
    """The lowest price with that margin, which is of the price, not of the cost: cost / (1 - margin), up to the
    next minor unit, and `MAX_PRICE` at most. Zero where there is no margin to keep or the cost is not known."""
    price = np.zeros(len(cost), np.int64)
    rows = np.flatnonzero((margin_bp != ABSENT) & (cost != ABSENT))
    price[rows] = np.minimum(-(-cost[rows] * SCALE // (SCALE - margin_bp[rows])), MAX_PRICE) * SCALE
    return price


def _to_ending(price: Column, chosen: _Chosen, lowest: Column, highest: Column) -> Column:
    """To the nearest price with the policy's ending (such as .99 of every 1.00), half up, or the nearest one that
    is neither below `lowest` nor above `highest`; unchanged where there is none, or only zero."""
    increment = chosen["rounding_increment"]
    rows = np.flatnonzero(increment)
    if not len(rows):
        return price
    step, ending, before = increment[rows] * SCALE, chosen["rounding_ending"][rows] * SCALE, price[rows]
    lowest, highest = lowest[rows], highest[rows]
    near = round_to(np.maximum(before - ending, 0), step) + ending
    if (low := np.flatnonzero(near < lowest)).size:
        near[low] = ending[low] - (ending - lowest)[low] // step[low] * step[low]
    if (high := np.flatnonzero(near > highest)).size:
        near[high] = ending[high] + (highest - ending)[high] // step[high] * step[high]
    rounded = price.copy()
    rounded[rows] = np.where((near >= lowest) & (near > 0) & (near <= highest), near, before)
    return rounded


def _tiers(rules: Rules, policy: Column) -> tuple[Column, Column]:
    """Minimum quantities and discounts (bp) of each row's tiers, shape (n, t); the first is quantity 1."""
    policies, tiers = rules.policies["policy_key"], rules.tiers
    if not len(tiers):
        return np.ones((len(policy), 1), np.int64), np.zeros((len(policy), 1), np.int64)
    used = np.zeros(len(policies) + 1, bool)
    used[policy] = True
    owner = np.full(len(tiers), ABSENT, np.int64)
    if len(policies):
        by_key = np.argsort(policies)
        at = np.minimum(np.searchsorted(policies[by_key], tiers["policy_key"]), len(policies) - 1)
        owner = np.where(policies[by_key[at]] == tiers["policy_key"], by_key[at], ABSENT)
    mine = np.flatnonzero((owner != ABSENT) & used[owner])
    owner, tiers = owner[mine], tiers[mine]
    nth = 1 + run_ranks(owner)
    quantity = np.zeros((len(used), 1 + int(nth.max(initial=0))), np.int64)
    off_bp = np.zeros_like(quantity)
    quantity[:, 0] = 1
    quantity[owner, nth], off_bp[owner, nth] = tiers["min_quantity"], tiers["off_bp"]
    return quantity[policy], off_bp[policy]
