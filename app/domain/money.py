"""Exact money: integers in a currency's minor unit, one rounding mode, half up.

Inside the formula an amount is *scaled*: minor units times `SCALE`. A price that rounds per unit is
always a multiple of `SCALE` there; one that rounds per line keeps the fraction until the line is totalled.
"""

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow
from functools import cache
from typing import NamedTuple

import iso4217

from app.errors import InvalidInput

SCALE = 10_000
"""Scaled units in one minor unit, and basis points in one."""

MOST_DECIMALS = 4
"""Of a currency of ISO 4217."""

MAX_AMOUNT = 10**10
"""Largest amount accepted, in minor units."""

MAX_PRICE = 5 * MAX_AMOUNT
"""Largest price that the formula makes, in minor units. No rate is above 500 %, and where a margin would ask for
more, it gets this. Times `SCALE` (to be scaled) and `SCALE` again (a rate of 100 %) it still fits 63 bits."""


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
    if not (amount.is_finite() and 0 <= amount <= MAX_AMOUNT):
        raise InvalidInput(f"{amount} is not between 0 and {to_decimal(MAX_AMOUNT, decimals)}")
    minor = _shifted(amount, decimals)
    if minor is None:
        raise InvalidInput(f"{amount} has more than the currency's {decimals} decimals")
    if minor > MAX_AMOUNT:
        raise InvalidInput(f"{amount} is not between 0 and {to_decimal(MAX_AMOUNT, decimals)}")
    return minor


def to_decimal(minor: int, decimals: int) -> Decimal:
    """Minor units as a decimal with exactly the currency's decimals: 1290 as 12.90."""
    return Decimal(minor).scaleb(-decimals)


def unscale(scaled: int) -> int:
    """A scaled amount in whole minor units, half up."""
    return (scaled + SCALE // 2) // SCALE


def to_basis_points(percent: Decimal) -> int:
    """12.5 (percent) as 1250. Raises `InvalidInput` past two decimals."""
    points = _shifted(percent, 2)
    if points is None:
        raise InvalidInput(f"{percent} % is not a number with at most two decimals")
    return points


def to_percent(basis_points: int) -> Decimal:
    return Decimal(basis_points).scaleb(-2)


_EXACT = Context(traps=[Inexact, InvalidOperation, Overflow])


def _shifted(number: Decimal, places: int) -> int | None:
    """`number` × 10^`places`, or None where that is not a whole number of ordinary size."""
    try:
        return int(_EXACT.to_integral_exact(_EXACT.scaleb(number, places)))
    except (DecimalException, OverflowError, ValueError):
        return None
