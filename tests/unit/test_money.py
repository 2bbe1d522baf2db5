"""Amounts between what people write and integers."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.money import (
    MAX_AMOUNT,
    SCALE,
    currency,
    to_basis_points,
    to_decimal,
    to_minor,
    to_percent,
    unscale,
)
from app.errors import InvalidInput

decimals = st.integers(0, 4)


@given(st.integers(0, MAX_AMOUNT), decimals)
def test_minor_units_survive_the_way_through_decimals(minor: int, places: int) -> None:
    amount = to_decimal(minor, places)
    assert to_minor(amount, places) == minor
    assert amount.as_tuple().exponent == -places


@given(st.integers(0, MAX_AMOUNT), decimals, st.integers(0, 40))
def test_zeros_behind_an_amount_change_nothing(minor: int, places: int, zeros: int) -> None:
    text = f"{to_decimal(minor, places):f}"
    padded = (text if "." in text else text + ".") + "0" * zeros
    assert to_minor(Decimal(padded), places) == minor


@given(st.integers(0, MAX_AMOUNT - 1), decimals, st.integers(1, 60), st.integers(1, 9))
def test_an_amount_finer_than_the_currency_is_refused_however_long_it_is(
    minor: int, places: int, zeros: int, digit: int
) -> None:
    amount = Decimal(f"{minor}.{'0' * (zeros - 1)}{digit}E-{places}")
    with pytest.raises(InvalidInput, match=f"more than the currency's {places} decimals"):
        to_minor(amount, places)


@pytest.mark.parametrize(
    "amount",
    ["-0.01", "100000000.01", "1E+999999", "-1E+999999", "NaN", "sNaN", "Infinity", "-Infinity", "1E-999999"],
)
def test_an_amount_out_of_bounds_is_refused(amount: str) -> None:
    with pytest.raises(InvalidInput):
        to_minor(Decimal(amount), 2)


@given(st.integers(0, MAX_AMOUNT * SCALE))
def test_a_scaled_amount_is_rounded_to_the_nearest_minor_unit_and_half_goes_up(scaled: int) -> None:
    assert -SCALE < 2 * (scaled - unscale(scaled) * SCALE) < SCALE or scaled % SCALE == SCALE // 2
    assert unscale(scaled // SCALE * SCALE + SCALE // 2) == scaled // SCALE + 1


@given(st.integers(0, 40_000))
def test_basis_points_survive_the_way_through_percents(points: int) -> None:
    assert to_basis_points(to_percent(points)) == points


@pytest.mark.parametrize("percent", ["0.001", "12.3456", "10." + "0" * 40 + "1", "NaN", "sNaN", "Infinity"])
def test_a_percent_that_is_no_whole_number_of_basis_points_is_refused(percent: str) -> None:
    with pytest.raises(InvalidInput):
        to_basis_points(Decimal(percent))


@pytest.mark.parametrize(("code", "number", "places"), [("USD", 840, 2), ("JPY", 392, 0), ("KWD", 414, 3)])
def test_a_currency_has_its_iso_number_and_decimals(code: str, number: int, places: int) -> None:
    assert currency(code) == (code, number, places)


@pytest.mark.parametrize("code", ["ZZZ", "XXX", "XAU", "usd", "", "US", "$"])
def test_what_is_no_currency_that_things_are_priced_in_is_refused(code: str) -> None:
    with pytest.raises(InvalidInput):
        currency(code)
