"""A sheet in one context: who asks for how many."""

from datetime import UTC, datetime
from decimal import Decimal

import iso4217
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import app.domain.quote as domain
from app.domain.columns import PolicyKind, Segment
from app.domain.money import MOST_DECIMALS, SCALE, currency
from app.domain.quote import AMOUNTS, INSTANTS, MAX_QUANTITY, MOST_AMOUNTS, Source, discount_rate
from app.domain.sheet import PriceSheet
from tests.unit.quotes import SentQuote, number, read
from tests.unit.strategies import HOUR, NOON, batch, batches, policy, promotion, row

segments = st.sampled_from(Segment)
quantities = st.one_of(st.integers(1, 60), st.integers(1, MAX_QUANTITY))


def quote(sheet: PriceSheet, segment: Segment, quantity: int, source: Source) -> SentQuote:
    return read(domain.quote(sheet.product_id, sheet.location, sheet, segment, quantity, source))


@st.composite
def sheets(draw: st.DrawFn) -> PriceSheet:
    (sheet,) = draw(batches(max_rows=1)).sheets()
    return sheet


def quoted(
    *promotions: dict[str, int], quantity: int = 1, tiers: list[dict[str, int]] | None = None, **fields: int
) -> SentQuote:
    (sheet,) = batch([row()], [policy(**fields)], list(promotions), tiers).sheets()
    return quote(sheet, Segment.EVERYONE, quantity, "cache")


@given(sheets(), segments, quantities)
def test_the_adjustments_lead_from_the_list_price_to_the_final_price(
    sheet: PriceSheet, segment: Segment, quantity: int
) -> None:
    answer = quote(sheet, segment, quantity, "cache")
    price = answer.list_price
    for adjustment in answer.adjustments:
        price += adjustment.amount
        assert adjustment.price == price
    assert answer.final_price == price


@given(sheets(), segments, quantities)
def test_every_amount_has_exactly_the_currencys_decimals(sheet: PriceSheet, segment: Segment, quantity: int) -> None:
    answer = quote(sheet, segment, quantity, "cache")
    amounts = [answer.list_price, answer.base_price, answer.final_price, answer.total]
    amounts += [amount for step in answer.adjustments for amount in (step.amount, step.price)]
    assert {-int(amount.as_tuple().exponent) for amount in amounts} == {currency(sheet.currency).decimals}


@given(sheets(), segments, quantities)
def test_the_total_is_what_all_pieces_cost_rounded_at_most_once(
    sheet: PriceSheet, segment: Segment, quantity: int
) -> None:
    answer = quote(sheet, segment, quantity, "cache")
    exact = answer.final_price * quantity
    if answer.rounding_scope == "unit":
        assert answer.total == exact
    else:
        # A unit price is shown half a minor unit off at most, and so is the total.
        assert abs(answer.total - exact) * 2 <= Decimal(quantity + 1).scaleb(-sheet.decimals)


@given(sheets(), segments, quantities)
def test_the_discount_rate_is_the_share_of_the_base_price_that_came_off(
    sheet: PriceSheet, segment: Segment, quantity: int
) -> None:
    answer = quote(sheet, segment, quantity, "cache")
    off = answer.base_price - answer.final_price
    assert 0 <= answer.discount_rate <= 1
    assert answer.discount_rate.as_tuple().exponent == -4
    assert abs(answer.discount_rate * answer.base_price - off) <= answer.base_price * Decimal("0.00005")


@given(sheets(), segments, quantities, quantities)
def test_one_piece_more_never_costs_more_each(sheet: PriceSheet, segment: Segment, one: int, other: int) -> None:
    few, many = (quote(sheet, segment, quantity, "cache").final_price for quantity in sorted((one, other)))
    assert many <= few


@pytest.mark.parametrize(
    ("location", "final", "total"), [(1, "9.00", "27.00"), (2, "900", "2700"), (3, "0.900", "2.700")]
)
def test_prices_are_written_as_their_currency_is(location: int, final: str, total: str) -> None:
    (sheet,) = batch([row(location_key=location)], promotions=[promotion()]).sheets()
    answer = quote(sheet, Segment.EVERYONE, 3, "cache")
    assert (str(answer.final_price), str(answer.total), str(answer.discount_rate)) == (final, total, "0.1000")


def test_a_line_is_rounded_once_where_the_policy_says_so() -> None:
    third_off = promotion(value=3_333)
    per_unit = quoted(third_off, quantity=100)
    per_line = quoted(third_off, quantity=100, line_rounding=1)
    assert (str(per_unit.final_price), str(per_unit.total)) == ("6.67", "667.00")
    assert (str(per_line.final_price), str(per_line.total), per_line.rounding_scope) == ("6.67", "666.70", "line")


@pytest.mark.parametrize(("quantity", "total"), [(4, "40.00"), (5, "50.00"), (6, "59.99")])
def test_half_a_minor_unit_of_a_line_goes_up(quantity: int, total: str) -> None:
    assert str(quoted(promotion(value=1), quantity=quantity, line_rounding=1).total) == total


@pytest.mark.parametrize(
    ("quantity", "price"), [(1, "10.00"), (2, "10.00"), (3, "9.50"), (9, "9.50"), (10, "8.00"), (MAX_QUANTITY, "8.00")]
)
def test_a_tier_holds_from_its_quantity_on(quantity: int, price: str) -> None:
    tiers = [
        {"policy_key": 1, "min_quantity": 3, "off_bp": 500},
        {"policy_key": 1, "min_quantity": 10, "off_bp": 2_000},
    ]
    assert str(quoted(quantity=quantity, tiers=tiers).final_price) == price


def test_every_step_is_named_with_its_rule_in_the_order_it_was_taken() -> None:
    tiers = [{"policy_key": 1, "min_quantity": 2, "off_bp": 5_000}]
    rule = policy(
        kind=PolicyKind.COST_PLUS, rate_bp=10_000, ceiling=1_500, floor=1_000, rounding_increment=100,
        rounding_ending=99,
    )  # fmt: skip
    (sheet,) = batch([row(cost=900)], [rule], [promotion(value=1_000)], tiers).sheets()
    answer = quote(sheet, Segment.EVERYONE, 2, "database")
    assert [(step.step, step.rule, str(step.amount), str(step.price)) for step in answer.adjustments] == [
        ("policy", "pol-1", "8.00", "18.00"),
        ("ceiling", "pol-1", "-3.00", "15.00"),
        ("rounding", "pol-1", "-0.01", "14.99"),
        ("promotion", "pro-1", "-1.50", "13.49"),
        ("quantity_tier", "pol-1", "-6.74", "6.75"),
        ("floor", "pol-1", "3.25", "10.00"),
    ]
    assert (str(answer.list_price), str(answer.base_price), str(answer.final_price)) == ("10.00", "14.99", "10.00")


def test_rules_that_did_not_apply_are_named_with_the_reason() -> None:
    answer = quoted(promotion(starts_at=NOON + HOUR), kind=PolicyKind.MARKET)
    assert [(rule.rule, rule.reason) for rule in answer.rejected] == [
        ("pol-1", "no_demand_index"),
        ("pro-1", "not_started"),
    ]
    assert answer.valid_until == datetime.fromtimestamp((NOON + HOUR) / 1000, UTC)


def test_members_and_everyone_get_their_own_price_from_one_sheet() -> None:
    (sheet,) = batch([row()], promotions=[promotion(segment=Segment.MEMBER)]).sheets()
    prices = {segment: quote(sheet, segment, 1, "cache") for segment in Segment}
    assert [(answer.segment, str(answer.final_price)) for answer in prices.values()] == [
        ("everyone", "10.00"),
        ("member", "9.00"),
    ]


@pytest.mark.parametrize(
    ("base", "final", "rate"),
    [(1_000, 1_000, "0.0000"), (1_000, 0, "1.0000"), (3, 2, "0.3333"), (3, 1, "0.6667"), (20_000, 19_999, "0.0001"),
     (20_001, 20_000, "0.0000"), (0, 0, "0.0000")],
)  # fmt: skip
def test_a_discount_rate_has_four_decimals_half_up(base: int, final: int, rate: str) -> None:
    assert str(number(discount_rate(base * SCALE, final * SCALE))) == rate


@given(st.integers(-(10**13), 10**13) | st.integers(-2000, 2000), st.sampled_from([0, 2, 3, 4]))
def test_an_amount_has_all_its_currencys_decimals(minor: int, decimals: int) -> None:
    assert bytes(AMOUNTS[decimals][minor * SCALE]).decode() == f"{Decimal(minor).scaleb(-decimals):f}"


@given(st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC)), st.integers(0, 999))
def test_an_instant_is_exact_to_the_millisecond(day: datetime, ms: int) -> None:
    moment = day.replace(microsecond=ms * 1_000)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    made = INSTANTS[since.days * 86_400_000 + since.seconds * 1_000 + ms]
    assert msgspec.json.decode(made, type=datetime) == moment


def test_the_unit_price_of_a_line_is_shown_rounded_and_its_steps_still_add_up() -> None:
    answer = quoted(promotion(1, value=1), promotion(2, value=1), promotion(3, value=1), line_rounding=1)
    assert [str(step.amount) for step in answer.adjustments] == ["0.00", "0.00", "0.00"]
    assert sum(step.amount for step in answer.adjustments) == answer.final_price - answer.list_price


def test_texts_are_kept_only_so_long_as_they_are_few() -> None:
    for cents in range(MOST_AMOUNTS * 2 + 1):
        assert bytes(AMOUNTS[2][cents * SCALE]) == f"{cents // 100}.{cents % 100:02}".encode()
    assert len(AMOUNTS[2]) <= MOST_AMOUNTS
    assert bytes(AMOUNTS[2][SCALE]) == b"0.01"


def test_every_currency_has_room_for_its_decimals() -> None:
    assert max(known.exponent or 0 for known in iso4217.Currency) == MOST_DECIMALS
