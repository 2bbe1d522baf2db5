"""What holds for every batch of price sheets, whatever the rows, the rules and the instant."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.columns import ABSENT, NEVER, PolicyKind, PromotionKind, Segment, Table
from app.domain.encoding import encode_rows
from app.domain.money import MAX_AMOUNT, MAX_PRICE, SCALE
from app.domain.quote import quote
from app.domain.sheet import PriceSheet, decode_sheet, encode_sheet
from app.domain.sheets import digests
from tests.support.sheets import spelled_out
from tests.unit.oracle import expected_sheets
from tests.unit.strategies import (
    HOUR,
    NOON,
    Batch,
    amounts,
    batch,
    batches,
    instants,
    labels_of,
    or_absent,
    policy,
    promotion,
    row,
    visible,
)


def digests_of(some: Batch) -> list[int]:
    return digests(some.compute(), some.rules).tolist()


def only(some: Batch) -> PriceSheet:
    (sheet,) = some.sheets()
    return sheet


def changes(sheet: PriceSheet) -> dict[str, int]:
    """The steps from list to base price, in minor units."""
    return {change.step: change.amount // SCALE for change in sheet.changes}


@settings(max_examples=150)
@given(batches())
def test_every_sheet_is_what_the_documentation_says(some: Batch) -> None:
    labels = labels_of(some.rules)
    assert some.sheets() == expected_sheets(some.inputs, some.rules, some.as_of, labels, version=7)


@given(batches())
def test_no_price_is_below_its_floor_or_above_the_highest_that_fits(some: Batch) -> None:
    for sheet in some.sheets():
        tiers = [*sheet.everyone.tiers, *sheet.member.tiers]
        assert 0 <= sheet.floor <= sheet.base_price <= MAX_PRICE * SCALE
        assert all(sheet.floor <= tier.final <= sheet.base_price for tier in tiers)


@given(batches())
def test_equal_arguments_give_equal_sheets_and_stay_as_they_were(some: Batch) -> None:
    again = Batch(some.inputs.copy(), some.rules._replace(promotions=some.rules.promotions.copy()), some.as_of)
    first, digest = some.sheets(), digests_of(some)
    assert some.inputs.tobytes() == again.inputs.tobytes()
    assert some.rules.promotions.tobytes() == again.rules.promotions.tobytes()
    assert again.sheets() == first
    assert digests_of(again) == digest


@given(batches())
def test_a_batch_is_its_rows_one_by_one(some: Batch) -> None:
    singles = [some.rows([nth]) for nth in range(len(some.inputs))]
    assert some.sheets() == [only(single) for single in singles]
    assert digests_of(some) == [digest for single in singles for digest in digests_of(single)]


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_rules_does_not_matter(some: Batch, random: Any) -> None:
    def shuffled(table: Table) -> np.ndarray[Any, Any]:
        return np.array(random.sample(range(len(table)), len(table)), np.int64)

    rows = shuffled(some.inputs)
    rules = {name: getattr(some.rules, name) for name in ("policies", "promotions")}
    other = some.rows(rows).with_rules(**{name: rule[shuffled(rule)] for name, rule in rules.items()})
    sheets, digest = some.sheets(), digests_of(some)
    assert other.sheets() == [sheets[nth] for nth in rows]
    assert digests_of(other) == [digest[nth] for nth in rows]


@given(batches(), st.data())
def test_some_rows_of_a_batch_become_the_same_sheets_as_all(some: Batch, data: st.DataObject) -> None:
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, len(some.inputs) - 1)))), np.int64)
    part = encode_rows(some.compute(), some.rules, labels_of(some.rules), chosen * 0 + 7, some.as_of, chosen)
    sheets = some.sheets()
    assert [spelled_out(sheet.payload) for sheet in part] == [sheets[nth] for nth in chosen]


@given(batches())
def test_the_changes_add_up_to_the_prices(some: Batch) -> None:
    for sheet in some.sheets():
        assert sheet.list_price + sum(change.amount for change in sheet.changes) == sheet.base_price
        for prices in (sheet.everyone, sheet.member):
            assert sheet.base_price + sum(change.amount for change in prices.changes) == prices.promoted
            assert prices.tiers[0].before_floor == prices.promoted


@given(batches())
def test_a_member_never_pays_more_than_everyone(some: Batch) -> None:
    for sheet in some.sheets():
        pairs = zip(sheet.member.tiers, sheet.everyone.tiers, strict=True)
        assert all(member.final <= everyone.final for member, everyone in pairs)


@given(batches())
def test_more_pieces_never_cost_more_each(some: Batch) -> None:
    for sheet in some.sheets():
        for prices in (sheet.everyone, sheet.member):
            finals = [tier.final for tier in prices.tiers]
            assert finals == sorted(finals, reverse=True)


@given(batches())
def test_prices_that_round_per_unit_are_whole_minor_units(some: Batch) -> None:
    for sheet in some.sheets():
        if not sheet.line_rounding:
            tiers = [*sheet.everyone.tiers, *sheet.member.tiers]
            amounts = [sheet.base_price, *(change.amount for change in sheet.changes)]
            assert not any(amount % SCALE for amount in [*amounts, *(tier.final for tier in tiers)])


@settings(max_examples=150)
@given(batches())
def test_what_is_stored_is_byte_for_byte_the_sheet_as_json(some: Batch) -> None:
    every = np.arange(len(some.inputs))
    encoded = encode_rows(some.compute(), some.rules, labels_of(some.rules), every + 3, some.as_of, every)
    for sheet, inputs, version in zip(encoded, some.inputs, every + 3, strict=True):
        whole = decode_sheet(sheet.payload)
        assert encode_sheet(whole) == sheet.payload
        assert (sheet.product_key, sheet.location_key) == (inputs["product_key"], inputs["location_key"])
        assert (sheet.product_id, sheet.location) == (whole.product_id, whole.location)
        assert (sheet.version, sheet.valid_until) == (whole.version, whole.valid_until)
        assert whole.version == version


@given(batches(), st.integers(1, 1_000))
def test_a_price_that_is_an_amount_alone_is_quoted_like_one_in_full(some: Batch, quantity: int) -> None:
    for encoded in some.encoded():
        brief, full = decode_sheet(encoded.payload), decode_sheet(encode_sheet(spelled_out(encoded.payload)))
        for segment in Segment:
            quotes = [quote("P", "L", sheet, segment, quantity, "cache") for sheet in (brief, full)]
            assert quotes[0] == quotes[1]


@pytest.mark.parametrize(
    ("some", "alone"),
    [
        (batch([row()]), True),
        (batch([row()], [policy(floor=950)]), True),
        (batch([row()], promotions=[promotion(starts_at=NEVER - 1)]), False),
        (batch([row()], promotions=[promotion()]), False),
        (batch([row()], [policy(floor=950)], tiers=[{"policy_key": 1, "min_quantity": 10, "off_bp": 100}]), False),
    ],
    ids=["list price", "floor below", "promotion not begun", "promotion", "quantities"],
)
def test_only_a_price_with_nothing_to_explain_is_an_amount_alone(some: Batch, alone: bool) -> None:
    (encoded,) = some.encoded()
    sheet = decode_sheet(encoded.payload)
    assert [isinstance(prices, int) for prices in (sheet.everyone, sheet.member)] == [alone, alone]


LARGEST = row(list_price=MAX_AMOUNT, cost=MAX_AMOUNT, competitor_price=MAX_AMOUNT, demand_bp=100_000, stock=10**12)


@pytest.mark.parametrize("line_rounding", [0, 1])
@pytest.mark.parametrize("kind", PolicyKind)
@pytest.mark.parametrize("guard", [{}, {"min_margin_bp": 9_999}, {"max_change_bp": 40_000, "ceiling": MAX_AMOUNT}])
def test_the_largest_amounts_and_rates_are_still_exact(kind: PolicyKind, line_rounding: int, guard: Any) -> None:
    rate = 40_000 if kind in (PolicyKind.MARKET, PolicyKind.COST_PLUS) else 1
    ending = {"rounding_increment": MAX_AMOUNT, "rounding_ending": MAX_AMOUNT - 1}
    rule = policy(kind=kind, rate_bp=rate, line_rounding=line_rounding, **guard, **ending)
    some = batch([LARGEST], [rule], [promotion(value=1)], [{"policy_key": 1, "min_quantity": 2, "off_bp": 1}])
    assert some.sheets() == expected_sheets(some.inputs, some.rules, NOON, labels_of(some.rules), version=7)


# Guardrails


@given(batches())
def test_only_the_floor_moves_a_price_further_than_the_policy_allows(some: Batch) -> None:
    limits = {f"pol-{p['policy_key']}": p for p in some.rules.policies}
    for sheet in some.sheets():
        limit = limits[sheet.policy]["max_change_bp"] if sheet.policy else ABSENT
        if limit != ABSENT and sheet.base_price > sheet.floor and "ceiling" not in changes(sheet):
            assert abs(sheet.base_price - sheet.list_price) * SCALE <= sheet.list_price * int(limit)


@given(batches())
def test_only_the_floor_lifts_a_price_above_the_ceiling(some: Batch) -> None:
    limits = {f"pol-{p['policy_key']}": p for p in some.rules.policies}
    for sheet in some.sheets():
        ceiling = int(limits[sheet.policy]["ceiling"]) if sheet.policy else ABSENT
        if ceiling != ABSENT:
            assert sheet.base_price <= max(ceiling * SCALE, sheet.floor)


@given(cost=amounts, margin=st.integers(0, 9_999), off=st.integers(0, 10_000), line_rounding=st.integers(0, 1))
def test_no_discount_eats_the_least_margin(cost: int, margin: int, off: int, line_rounding: int) -> None:
    rule = policy(min_margin_bp=margin, line_rounding=line_rounding)
    paid = only(batch([row(cost=cost)], [rule], [promotion(value=off)])).everyone.tiers[0].final
    assert (paid - cost * SCALE) * SCALE >= paid * margin or paid == MAX_PRICE * SCALE


@pytest.mark.parametrize(
    ("guard", "steps"),
    [
        ({"max_change_bp": 1_000}, {"policy": 1_000, "max_change": -900}),
        ({"ceiling": 1_500}, {"policy": 1_000, "ceiling": -500}),
        ({"min_margin_bp": 6_000}, {"policy": 1_000, "min_margin": 500}),
        ({"floor": 2_300}, {"policy": 1_000, "floor": 300}),
        (
            {"max_change_bp": 5_000, "ceiling": 1_400, "min_margin_bp": 5_000, "floor": 2_200},
            {"policy": 1_000, "max_change": -500, "ceiling": -100, "min_margin": 600, "floor": 200},
        ),
    ],
)
def test_a_clamp_is_always_in_the_explanation(guard: dict[str, int], steps: dict[str, int]) -> None:
    doubled = policy(kind=PolicyKind.COST_PLUS, rate_bp=10_000, **guard)
    assert changes(only(batch([row(list_price=1_000, cost=1_000)], [doubled]))) == steps | (
        {"max_change": -500} if guard.get("max_change_bp") == 5_000 else {}
    )


def test_a_promotion_that_meets_the_floor_is_shown_whole_and_then_clamped() -> None:
    sheet = only(batch([row()], [policy(floor=950)], [promotion(value=1_000)]))
    assert [(change.rule, change.amount) for change in sheet.everyone.changes] == [("pro-1", -100 * SCALE)]
    (tier,) = sheet.everyone.tiers
    assert (tier.before_floor, tier.final) == (900 * SCALE, 950 * SCALE)


# Rounding


@given(batches())
def test_a_rounded_price_has_the_ending_and_any_other_says_nothing_of_rounding(some: Batch) -> None:
    rules = {f"pol-{p['policy_key']}": p for p in some.rules.policies}
    for sheet in some.sheets():
        if "rounding" in changes(sheet):
            rule = rules[sheet.policy]
            step, ending = int(rule["rounding_increment"]) * SCALE, int(rule["rounding_ending"]) * SCALE
            assert sheet.base_price % step == ending


@pytest.mark.parametrize(
    ("listed", "guard", "price"),
    [
        (1_349, {}, 1_399),
        (1_348, {}, 1_299),
        (10, {}, 99),
        (1_348, {"floor": 1_300}, 1_399),
        (1_380, {"ceiling": 1_390}, 1_299),
        (1_350, {"floor": 1_340, "ceiling": 1_360}, 1_350),
        (1_380, {"max_change_bp": 100}, 1_380),
        (50, {"ceiling": 60}, 50),
    ],
)
def test_a_price_goes_to_the_nearest_ending_that_no_guardrail_forbids(
    listed: int, guard: dict[str, int], price: int
) -> None:
    rule = policy(rounding_increment=100, rounding_ending=99, **guard)
    assert only(batch([row(list_price=listed)], [rule])).base_price == price * SCALE


def test_a_price_is_not_rounded_to_nothing() -> None:
    assert only(batch([row(list_price=30)], [policy(rounding_increment=100)])).base_price == 30 * SCALE


# Policies


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PolicyKind.MARKET, "no_demand_index"),
        (PolicyKind.COMPETITOR, "no_competitor_price"),
        (PolicyKind.COST_PLUS, "no_cost"),
        (PolicyKind.MARKDOWN, "no_stock"),
    ],
)
def test_a_policy_without_its_signal_leaves_the_list_price_and_says_so(kind: PolicyKind, reason: str) -> None:
    sheet = only(batch([row()], [policy(kind=kind, rate_bp=2_000)]))
    assert sheet.base_price == sheet.list_price
    assert [rejected.reason for rejected in sheet.rejected] == [reason]


@pytest.mark.parametrize(
    ("kind", "signals", "fields", "price"),
    [
        (PolicyKind.LIST, {}, {}, 1_000),
        (PolicyKind.MARKET, {"demand_bp": 12_000}, {"rate_bp": 5_000}, 1_100),
        (PolicyKind.MARKET, {"demand_bp": 8_000}, {"rate_bp": 10_000}, 800),
        (PolicyKind.MARKET, {"demand_bp": 100_000}, {"rate_bp": 40_000}, 5_000),
        (PolicyKind.MARKET, {"demand_bp": 0}, {"rate_bp": 40_000}, 0),
        (PolicyKind.COMPETITOR, {"competitor_price": 900}, {}, 900),
        (PolicyKind.COMPETITOR, {"competitor_price": 900}, {"rate_bp": 1_000, "amount": 5}, 805),
        (PolicyKind.COMPETITOR, {"competitor_price": 900}, {"amount": 1_000}, 0),
        (PolicyKind.COST_PLUS, {"cost": 700}, {"rate_bp": 3_000}, 910),
        (PolicyKind.MARKDOWN, {"stock": 50}, {"rate_bp": 3_000, "threshold": 50}, 700),
        (PolicyKind.MARKDOWN, {"stock": 49}, {"rate_bp": 3_000, "threshold": 50}, 1_000),
    ],
)
def test_each_kind_of_policy_prices_as_its_name_says(
    kind: PolicyKind, signals: dict[str, int], fields: dict[str, int], price: int
) -> None:
    assert only(batch([row(**signals)], [policy(kind=kind, **fields)])).base_price == price * SCALE


def test_a_row_that_no_policy_prices_has_its_list_price_and_no_explanation() -> None:
    sheet = only(batch([row(cost=2_000)], [policy(product_key=2, floor=5_000)]))
    assert (sheet.base_price, sheet.floor, sheet.policy) == (sheet.list_price, 0, None)
    assert (sheet.changes, sheet.rejected) == ((), ())


# Digests


@st.composite
def changed_inputs(draw: st.DrawFn) -> tuple[Batch, Batch]:
    some = draw(batches(max_rows=1))
    field = draw(st.sampled_from(["list_price", "cost", "competitor_price", "demand_bp", "stock", "category_key"]))
    inputs = some.inputs.copy()
    now = int(inputs[field][0])
    by_little = st.integers(now - 20, now + 20).filter(lambda value: 0 <= value <= MAX_AMOUNT)
    other = amounts if field == "list_price" else or_absent(amounts)
    if field == "demand_bp":
        other = or_absent(st.integers(0, 100_000))
        by_little = by_little.map(lambda value: min(value, 100_000))
    inputs[field] = draw(other if now == ABSENT else st.one_of(by_little, other))
    return some, Batch(inputs, some.rules, draw(st.one_of(st.just(NOON), instants)))


@settings(max_examples=100)
@given(changed_inputs())
def test_a_digest_changes_exactly_when_the_sheet_does(pair: tuple[Batch, Batch]) -> None:
    before, after = (visible(some.compute(), some.rules) for some in pair)
    assert (digests_of(pair[0]) == digests_of(pair[1])) == (before == after)


@settings(max_examples=60)
@given(batches(max_rows=2), st.data())
def test_a_revised_rule_changes_the_digests_of_the_sheets_that_it_changes(some: Batch, data: st.DataObject) -> None:
    rules = data.draw(st.sampled_from(["policies", "promotions"]))
    table = getattr(some.rules, rules).copy()
    if not len(table):
        return
    # Without the scope and the key: what else is said of a rule.
    fields = [name for name in table.dtype.names if not name.endswith(("_key", "_number"))]
    field = data.draw(st.sampled_from(fields))
    flag = field in ("kind", "segment", "stackable", "line_rounding")
    table[field][0] = data.draw(st.integers(0, 1) if flag else st.integers(0, 9_999))
    other = some.with_rules(**{rules: table})
    pairs = zip(digests_of(some), digests_of(other), some.sheets(), other.sheets(), strict=True)
    assert all((before == after) == (sheet == revised) for before, after, sheet, revised in pairs)


def test_the_order_in_which_promotions_apply_is_in_the_digest_where_it_shows() -> None:
    def first(priority: int, **other: int) -> Batch:
        return batch([row()], [], [promotion(1, priority=priority, value=0), promotion(2, priority=5, **other)])

    assert first(1, value=0).sheets() != first(9, value=0).sheets()
    assert digests_of(first(1, value=0)) != digests_of(first(9, value=0))
    assert first(1).sheets() == first(9).sheets(), "one applies, one does not: they are told in lists of their own"
    assert digests_of(first(1)) == digests_of(first(9))


def test_a_renamed_rule_changes_the_digests_of_the_rows_it_concerns_and_no_others() -> None:
    some = batch([row(), row(product_key=2)], [policy()], [promotion(product_key=1)])
    promotions = some.rules.promotions.copy()
    promotions["name_hash"] += 1
    before, after = digests_of(some), digests_of(some.with_rules(promotions=promotions))
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]


def test_discounts_below_the_floor_are_told_apart() -> None:
    def with_tier(off_bp: int) -> Batch:
        return batch([row()], [policy(floor=900)], tiers=[{"policy_key": 1, "min_quantity": 2, "off_bp": off_bp}])

    assert digests_of(with_tier(2_000)) != digests_of(with_tier(3_000))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"ends_at": NOON + HOUR}, {"ends_at": NOON + 2 * HOUR}),
        ({"value": 0, "ends_at": NOON - HOUR}, {"value": 0, "ends_at": NEVER}),
        ({"value": 1_000}, {"value": 1_100}),
    ],
    ids=["when it ends", "whether it has ended", "how much it takes off"],
)
def test_all_that_is_said_of_a_promotion_is_in_the_digest(one: dict[str, int], other: dict[str, int]) -> None:
    assert digests_of(batch([row()], [], [promotion(**one)])) != digests_of(batch([row()], [], [promotion(**other)]))


def test_the_share_of_each_promotion_in_a_price_is_in_the_digest() -> None:
    def off(first: int, second: int) -> Batch:
        offers = [promotion(key, kind=PromotionKind.AMOUNT, value=value) for key, value in ((1, first), (2, second))]
        return batch([row()], [], offers)

    assert digests_of(off(10, 20)) != digests_of(off(20, 10))


def test_rows_that_say_different_things_have_different_digests() -> None:
    rows = [row(list_price=price, cost=cost) for price in range(1, 200) for cost in range(0, 100, 7)]
    some = batch(rows, [policy(min_margin_bp=1_000, max_change_bp=100)], [promotion(ends_at=NOON + HOUR)])
    sheets = {encode_sheet(sheet) for sheet in some.sheets()}
    assert len(set(digests_of(some))) == len(sheets)


def test_an_open_end_is_no_boundary() -> None:
    assert only(batch([row()], promotions=[promotion(ends_at=NEVER)])).valid_until is None
