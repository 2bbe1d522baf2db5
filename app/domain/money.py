"""Exact money: integers in a currency's minor unit, one rounding mode, half up.

Inside the formula an amount is *scaled*: minor units times `SCALE`. A price that rounds per unit is
always a multiple of `SCALE` there; one that rounds per line keeps the fraction until the line is totalled.
"""

from decimal import Decimal
from functools import cache
from typing import NamedTuple

import iso4217

from app.errors import InvalidInput

SCALE = 10_000
"""Scaled units in one minor unit, and basis points in one."""

MAX_AMOUNT = 10**10
"""Largest amount accepted, in minor units. Times `SCALE`, a rate of 600 % and `SCALE` again it fits 63 bits."""


class Currency(NamedTuple):
    code: str
    number: int
    decimals: int


@cache
def currency(code: str) -> Currency:
    """The ISO 4217 currency of that alphabetic code. Raises `InvalidInput` where there is none."""
    try:
        known = iso4217.Currency(code)
    except ValueError:
        raise InvalidInput(f"{code!r} is not an ISO 4217 currency code") from None
    if known.exponent is None or known.number is None:
        raise InvalidInput(f"{code} is not a currency that things are priced in")
    return Currency(known.code, known.number, known.exponent)


def to_minor(amount: Decimal, decimals: int) -> int:
    """An amount such as 12.90 in minor units (1290). Raises `InvalidInput` where it does not fit exactly."""
    minor = amount.scaleb(decimals)
    if not minor.is_finite() or minor != minor.to_integral_value():
        raise InvalidInput(f"{amount} has more than the currency's {decimals} decimals")
    if not 0 <= minor <= MAX_AMOUNT:
        raise InvalidInput(f"{amount} is not between 0 and {Decimal(MAX_AMOUNT).scaleb(-decimals)}")
    return int(minor)


def to_decimal(minor: int, decimals: int) -> Decimal:
    """Minor units as a decimal with exactly the currency's decimals: 1290 as 12.90."""
    return Decimal(minor).scaleb(-decimals)


def unscale(scaled: int) -> int:
    """A scaled amount in whole minor units, half up."""
    return (scaled + SCALE // 2) // SCALE


def to_basis_points(percent: Decimal) -> int:
    """12.5 (percent) as 1250. Raises `InvalidInput` past two decimals."""
    points = percent.scaleb(2)
    if points != points.to_integral_value():
        raise InvalidInput(f"{percent} % has more than two decimals")
    return int(points)


def to_percent(basis_points: int) -> Decimal:
    return Decimal(basis_points).scaleb(-2)
