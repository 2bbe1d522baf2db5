"""The one formula: rows and rules in, price sheets out, as columns of integers.

    list price → policy → guardrails (maximum change, ceiling, minimum margin, floor) → rounding = base price
    → promotions, per segment → quantity tiers → floor again = final price

A worker calls it with a hundred thousand rows, a cache miss with one. The floor wins over everything: over
the ceiling, over rounding, over promotions and tiers.
"""

from dataclasses import dataclass

import numpy as np

from app.domain.arithmetic import mix, round_to, times_bp
from app.domain.columns import ABSENT, POLICIES, PRICE_INPUTS, Column, PolicyKind, Rules, Table
from app.domain.matching import every_match, most_specific
from app.domain.money import SCALE
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
"""Why a policy left the list price alone; the index is `Sheets.policy_reason`."""

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
    chosen = _with_default(rules.policies)[policy]
    line_rounding = chosen["line_rounding"]
    grain = np.where(line_rounding == 1, 1, SCALE)

    after_policy, reason = _policy_price(inputs, chosen, grain)
    steps, floor = _guard_and_round(inputs, chosen, after_policy, grain)
    row, rule = every_match(inputs, rules.promotions)
    promoted = promote(steps[-1], grain, row, rule, rules.promotions, as_of)
    tier_quantity, tier_off_bp = _tiers(rules, policy)
    before_floor = times_bp(promoted.prices[:, :, None], SCALE - tier_off_bp, grain[:, None])
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
    """A 64-bit hash per row of all that the sheet says, its rules' revisions included: equal digests mean
    that storing the sheet again would change nothing (two sheets in 2^64 aside)."""
    state = np.zeros(len(sheets), np.uint64)
    promoted = sheets.promoted
    chosen = _with_default(rules.policies)[sheets.policy]
    for column in (
        chosen["policy_key"], chosen["revision"], sheets.policy_reason, sheets.line_rounding, sheets.floor,
        *sheets.steps, promoted.valid_until,
    ):  # fmt: skip
        state = mix(state, column)
    for nth in range(sheets.tier_quantity.shape[1]):
        there = sheets.tier_quantity[:, nth] > 0
        for column in (sheets.tier_quantity[:, nth], *sheets.final[:, :, nth]):
            state = np.where(there, mix(state, column), state)
    pairs = np.zeros(len(promoted.row), np.uint64)
    for field in ("promotion_key", "revision"):
        pairs = mix(pairs, rules.promotions[field][promoted.rule])
    for column in (*promoted.outcome, *promoted.change):
        pairs = mix(pairs, column)
    # Wrapping addition: a sheet's candidates are ordered by their rules, so the set says it all.
    np.add.at(state, promoted.row, pairs)
    return state.astype(np.int64)


def _with_default(policies: Table) -> Table:
    """The policies and, last, the one for rows that none prices: the list price, unguarded. An index of
    `ABSENT`, which is -1, thereby selects it."""
    default = np.zeros(1, POLICIES)
    for guardrail in ("min_margin_bp", "floor", "ceiling", "max_change_bp"):
        default[guardrail] = ABSENT
    return np.concatenate([policies, default])


def _policy_price(inputs: Table, chosen: Table, grain: Column) -> tuple[Column, Column]:
    """The price after the policy, and why (index into `POLICY_REASONS`) where the policy did not apply."""
    kind, rate = chosen["kind"], chosen["rate_bp"]
    price = inputs["list_price"] * SCALE
    reason = np.zeros(len(inputs), np.int64)
    factor = np.clip(SCALE + (inputs["demand_bp"] - SCALE) * rate // SCALE, 0, MAX_FACTOR_BP)
    undercut = times_bp(inputs["competitor_price"] * SCALE, SCALE - rate, grain) - chosen["amount"] * SCALE
    plenty = inputs["stock"] >= chosen["threshold"]
    for this, input_name, result in (
        (PolicyKind.MARKET, "demand_bp", times_bp(price, factor, grain)),
        (PolicyKind.COMPETITOR, "competitor_price", np.maximum(undercut, 0)),
        (PolicyKind.COST_PLUS, "cost", times_bp(inputs["cost"] * SCALE, SCALE + rate, grain)),
        (PolicyKind.MARKDOWN, "stock", np.where(plenty, times_bp(price, SCALE - rate, grain), price)),
    ):
        known = inputs[input_name] != ABSENT
        price = np.where((kind == this) & known, result, price)
        missing = POLICY_REASONS.index("no_" + {"demand_bp": "demand_index"}.get(input_name, input_name))
        reason[(kind == this) & ~known] = missing
    unmoved = (kind == PolicyKind.MARKDOWN) & (inputs["stock"] != ABSENT) & ~plenty
    reason[unmoved] = POLICY_REASONS.index("stock_below_threshold")
    return price, reason


def _guard_and_round(inputs: Table, chosen: Table, after_policy: Column, grain: Column) -> tuple[Column, Column]:
    """All `STEPS`, shape (7, n), and the floor that holds to the end, shape (n,); scaled."""
    listed = inputs["list_price"] * SCALE
    change, ceiling = chosen["max_change_bp"], chosen["ceiling"] * SCALE
    most = times_bp(listed, SCALE + np.maximum(change, 0), grain)
    least = times_bp(listed, np.maximum(SCALE - np.maximum(change, 0), 0), grain)
    bounded = np.where(change != ABSENT, np.clip(after_policy, least, most), after_policy)
    capped = np.where(chosen["ceiling"] != ABSENT, np.minimum(bounded, ceiling), bounded)

    # Margin is of the price, not of the cost: price ≥ cost / (1 - margin), up to the next minor unit.
    margin, cost = chosen["min_margin_bp"], inputs["cost"]
    with_margin = -(-cost * SCALE // (SCALE - np.maximum(margin, 0))) * SCALE
    margin_price = np.where((margin != ABSENT) & (cost != ABSENT), with_margin, 0)
    margined = np.maximum(capped, margin_price)
    floor_price = np.maximum(chosen["floor"], 0) * SCALE
    floored = np.maximum(margined, floor_price)
    floor = np.maximum(margin_price, floor_price)
    rounded = _to_ending(floored, chosen, floor)
    return np.stack([listed, after_policy, bounded, capped, margined, floored, rounded]), floor


def _to_ending(price: Column, chosen: Table, floor: Column) -> Column:
    """To the nearest price with the policy's ending (such as .99 of every 1.00) between floor and ceiling;
    unchanged where the policy rounds to nothing or no such price is there."""
    step, ending = np.maximum(chosen["rounding_increment"], 1) * SCALE, chosen["rounding_ending"] * SCALE
    highest = np.where(chosen["ceiling"] != ABSENT, np.maximum(chosen["ceiling"] * SCALE, floor), 2**62)
    nearest = round_to(np.maximum(price - ending, 0), step) + ending
    raised = np.where(nearest < floor, ending - (ending - floor) // step * step, nearest)
    lowered = np.where(raised > highest, (highest - ending) // step * step + ending, raised)
    fits = (chosen["rounding_increment"] > 0) & (lowered >= floor) & (lowered > 0) & (lowered <= highest)
    return np.where(fits, lowered, price)


def _tiers(rules: Rules, policy: Column) -> tuple[Column, Column]:
    """Minimum quantities and discounts (bp) of each row's tiers, shape (n, t); the first is quantity 1."""
    keys, firsts, counts = np.unique(rules.tiers["policy_key"], return_index=True, return_counts=True)
    width = 1 + int(counts.max(initial=0))
    quantity = np.zeros((len(rules.policies) + 1, width), np.int64)
    off_bp = np.zeros_like(quantity)
    quantity[:, 0] = 1
    owner = {int(key): index for index, key in enumerate(rules.policies["policy_key"])}
    for key, first, count in zip(keys.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        if (index := owner.get(key)) is not None:
            own = rules.tiers[first : first + count]
            quantity[index, 1 : 1 + count] = own["min_quantity"]
            off_bp[index, 1 : 1 + count] = own["off_bp"]
    return quantity[policy], off_bp[policy]
