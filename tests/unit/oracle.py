"""The formula once more, slowly: one row at a time, in exact fractions of a minor unit, from the documentation."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, floor

from app.domain.columns import ABSENT, NEVER, PolicyKind, PromotionKind, Rules, Segment, Table
from app.domain.money import MAX_PRICE, SCALE
from app.domain.promotions import NEAR_MS
from app.domain.sheet import Change, Labels, PriceSheet, Rejected, SegmentPrices, Tier
from app.domain.sheets import MAX_FACTOR_BP

Record = dict[str, int]

_UNGUARDED = {
    "kind": PolicyKind.LIST,
    "line_rounding": 0,
    "max_change_bp": ABSENT,
    "ceiling": ABSENT,
    "min_margin_bp": ABSENT,
    "floor": ABSENT,
    "rounding_increment": 0,
}


def expected_sheets(inputs: Table, rules: Rules, as_of: int, labels: Labels, version: int) -> list[PriceSheet]:
    policies, tiers, promotions = (_records(table) for table in rules)
    return [
        _sheet(row, _best_policy(row, policies), tiers, _concerned(row, promotions, as_of), as_of, labels, version)
        for row in _records(inputs)
    ]


def _records(table: Table) -> list[Record]:
    assert table.dtype.names
    return [dict(zip(table.dtype.names, map(int, record), strict=True)) for record in table.tolist()]


def _sheet(
    row: Record,
    policy: Record | None,
    tiers: list[Record],
    promotions: list[Record],
    as_of: int,
    labels: Labels,
    version: int,
) -> PriceSheet:
    location, currency = labels.locations[row["location_key"]]
    label = labels.policies[policy["policy_key"]] if policy else None
    guards = policy or _UNGUARDED
    grain = Fraction(1, SCALE) if guards["line_rounding"] else Fraction(1)
    listed = Fraction(row["list_price"])

    wanted, reason = _policy_price(row, guards, grain)
    steps, hard_floor = [("policy", wanted)], Fraction(0)
    lowest, highest = Fraction(0), Fraction(MAX_PRICE)
    if guards["max_change_bp"] != ABSENT:
        share = Fraction(guards["max_change_bp"], SCALE)
        lowest = max(ceil(listed * (1 - share) / grain) * grain, Fraction(0))
        highest = floor(listed * (1 + share) / grain) * grain
        steps.append(("max_change", min(max(steps[-1][1], lowest), highest)))
    if guards["ceiling"] != ABSENT:
        highest = min(highest, Fraction(guards["ceiling"]))
        steps.append(("ceiling", min(steps[-1][1], Fraction(guards["ceiling"]))))
    if guards["min_margin_bp"] != ABSENT and row["cost"] != ABSENT:
        cost_share = 1 - Fraction(guards["min_margin_bp"], SCALE)
        hard_floor = Fraction(min(ceil(row["cost"] / cost_share), MAX_PRICE))
        steps.append(("min_margin", max(steps[-1][1], hard_floor)))
    if guards["floor"] != ABSENT:
        hard_floor = max(hard_floor, Fraction(guards["floor"]))
        steps.append(("floor", max(steps[-1][1], Fraction(guards["floor"]))))
    if guards["rounding_increment"]:
        steps.append(("rounding", _with_ending(steps[-1][1], guards, max(lowest, hard_floor), highest)))
    base = steps[-1][1]

    changes, before = [], listed
    for step, price in steps:
        if price != before:
            assert label
            changes.append(Change(step, label.id, label.name, _scaled(price - before)))
        before = price

    own_tiers = [(1, Fraction(0))]
    if policy:
        own = sorted((t["min_quantity"], t["off_bp"]) for t in tiers if t["policy_key"] == policy["policy_key"])
        own_tiers += [(quantity, Fraction(off, SCALE)) for quantity, off in own]

    def segment_prices(segment: Segment) -> SegmentPrices:
        promoted, applied, rejected = _promote(base, grain, promotions, segment, as_of)
        prices = [(quantity, _half_up(promoted * (1 - off), grain)) for quantity, off in own_tiers]
        return SegmentPrices(
            _scaled(promoted),
            tuple(Change("promotion", *labels.promotions[key], _scaled(change)) for key, change in applied),
            tuple(Rejected(*labels.promotions[key], why) for key, why in rejected),
            tuple(Tier(quantity, _scaled(price), _scaled(max(price, hard_floor))) for quantity, price in prices),
        )

    boundaries = [p[edge] for p in promotions for edge in ("starts_at", "ends_at") if as_of < p[edge] < NEVER]
    return PriceSheet(
        product_id=labels.products[row["product_key"]],
        location=location,
        currency=currency.code,
        decimals=currency.decimals,
        version=version,
        computed_at=as_of,
        valid_until=min(boundaries, default=None),
        line_rounding=bool(guards["line_rounding"]),
        list_price=_scaled(listed),
        base_price=_scaled(base),
        floor=_scaled(hard_floor),
        policy=label.id if label else None,
        policy_name=label.name if label else None,
        changes=tuple(changes),
        rejected=(Rejected(label.id, label.name, reason),) if label and reason else (),
        everyone=segment_prices(Segment.EVERYONE),
        member=segment_prices(Segment.MEMBER),
    )


def _meets(row: Record, rule: Record, field: str) -> bool:
    return rule[field] == ABSENT or rule[field] == row[field]


_SCOPE = ("product_key", "category_key", "department_key", "location_key", "currency_number")


def _best_policy(row: Record, policies: list[Record]) -> Record | None:
    def how_specific(policy: Record) -> tuple[bool, ...]:
        return tuple(policy[field] != ABSENT for field in _SCOPE)

    matching = [p for p in policies if all(_meets(row, p, field) for field in _SCOPE)]
    return max(matching, key=how_specific, default=None)


def _concerned(row: Record, promotions: list[Record], as_of: int) -> list[Record]:
    return sorted(
        (p for p in promotions if all(_meets(row, p, field) for field in _SCOPE) and p["ends_at"] > as_of - NEAR_MS),
        key=lambda p: (not p["stackable"], p["priority"], p["promotion_key"]),
    )


def _policy_price(row: Record, policy: Record, grain: Fraction) -> tuple[Fraction, str]:
    listed = Fraction(row["list_price"])
    if policy["kind"] == PolicyKind.LIST:
        return listed, ""
    rate = Fraction(policy["rate_bp"], SCALE)
    if policy["kind"] == PolicyKind.MARKET:
        if row["demand_bp"] == ABSENT:
            return listed, "no_demand_index"
        moved = _half_up((row["demand_bp"] - SCALE) * rate, Fraction(1))
        factor = min(max(SCALE + moved, Fraction(0)), Fraction(MAX_FACTOR_BP))
        return _half_up(listed * factor / SCALE, grain), ""
    if policy["kind"] == PolicyKind.COMPETITOR:
        if row["competitor_price"] == ABSENT:
            return listed, "no_competitor_price"
        return max(_half_up(row["competitor_price"] * (1 - rate), grain) - policy["amount"], Fraction(0)), ""
    if policy["kind"] == PolicyKind.COST_PLUS:
        if row["cost"] == ABSENT:
            return listed, "no_cost"
        return _half_up(row["cost"] * (1 + rate), grain), ""
    if row["stock"] == ABSENT:
        return listed, "no_stock"
    if row["stock"] < policy["threshold"]:
        return listed, "stock_below_threshold"
    return _half_up(listed * (1 - rate), grain), ""


def _with_ending(price: Fraction, policy: Record, lowest: Fraction, highest: Fraction) -> Fraction:
    step, ending = policy["rounding_increment"], policy["rounding_ending"]
    nearest = max(floor((price - ending) / step + Fraction(1, 2)), 0)
    first, last = ceil((lowest - ending) / step), floor((highest - ending) / step)
    rounded = Fraction(min(max(nearest, first), last) * step + ending)
    return rounded if first <= last and rounded > 0 else price


def _promote(
    base: Fraction, grain: Fraction, promotions: Sequence[Record], segment: Segment, as_of: int
) -> tuple[Fraction, list[tuple[int, Fraction]], list[tuple[int, str]]]:
    """The price, the promotions that made it with their changes, and the rejected ones with the reason."""

    def why_not(p: Record) -> str | None:
        if p["segment"] == Segment.MEMBER and segment is Segment.EVERYONE:
            return "other_segment"
        if as_of < p["starts_at"]:
            return "not_started"
        return "ended" if p["ends_at"] <= as_of else None

    eligible = [p for p in promotions if why_not(p) is None]
    stack, stacked = [], base
    for p in (p for p in eligible if p["stackable"]):
        after = _discounted(stacked, p, grain)
        stack.append((p["promotion_key"], after - stacked))
        stacked = after
    alone = [(_discounted(base, p, grain), p["promotion_key"]) for p in eligible if not p["stackable"]]
    best = min(alone, key=lambda pair: pair[0], default=None)

    def reasons() -> Iterator[tuple[int, str]]:
        for p in promotions:
            key, reason = p["promotion_key"], why_not(p)
            if reason:
                yield key, reason
            elif exclusive_wins:
                if best and key != best[1]:
                    yield key, "exclusive_was_better"
            elif key in dict(stack):
                if not dict(stack)[key]:
                    yield key, "no_effect"
            else:
                yield key, "no_effect" if _discounted(base, p, grain) == base else "stack_was_better"

    exclusive_wins = best is not None and best[0] < stacked
    if best is not None and exclusive_wins:
        return best[0], [(best[1], best[0] - base)], list(reasons())
    return stacked, [(key, change) for key, change in stack if change], list(reasons())


def _discounted(price: Fraction, promotion: Record, grain: Fraction) -> Fraction:
    value = promotion["value"]
    if promotion["kind"] == PromotionKind.PERCENT:
        return _half_up(price * (1 - Fraction(value, SCALE)), grain)
    if promotion["kind"] == PromotionKind.AMOUNT:
        return max(price - value, Fraction(0))
    return min(price, Fraction(value))


def _half_up(amount: Fraction, grain: Fraction) -> Fraction:
    return floor(amount / grain + Fraction(1, 2)) * grain


def _scaled(amount: Fraction) -> int:
    scaled = amount * SCALE
    assert scaled.denominator == 1
    return int(scaled)
