"""A quote: one sheet in one context. A few integer operations, no I/O."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeAlias

import msgspec

from app.domain.columns import MEMBER, Segment
from app.domain.money import MOST_DECIMALS, SCALE, unscale
from app.domain.sheet import Change, PriceSheet, Tier

Source = Literal["cache", "database", "stale", "simulation"]

Number: TypeAlias = msgspec.Raw
Instant: TypeAlias = msgspec.Raw
"""As it is sent: a JSON number with all its decimals, such as 12.90, or a time. Few of them are in many prices, and to
find one that is ready costs a fifth of what it costs to make it."""

MAX_QUANTITY = 1_000_000

MAX_ITEMS = 1000
"""In one batch of requests."""

MOST_AMOUNTS, MOST_OTHERS = 16_384, 4_096
"""Texts that are kept, in 3 MB and in 0.7: the 75,000 most wanted rows of a grocer have 10,000 amounts, 4,000 discount
rates and 1,800 times."""


class Adjustment(msgspec.Struct, frozen=True, gc=False):
    """One step from the list price to the final price. `amount` is per unit and signed, `price` is the
    unit price after it; both have exactly the currency's decimals."""

    step: str
    rule: str | None
    name: str | None
    amount: Number
    price: Number


class RejectedRule(msgspec.Struct, frozen=True, gc=False):
    rule: str
    name: str
    reason: str


class Quote(msgspec.Struct, frozen=True, gc=False):
    """The answer to one request. list_price + the adjustments' amounts = final_price, exactly; total is
    final_price × quantity, or, where the policy rounds per line, the unrounded unit price × quantity, rounded."""

    product_id: str
    location: str
    currency: str
    segment: str
    quantity: int
    list_price: Number
    base_price: Number
    discount_rate: Number
    final_price: Number
    total: Number
    rounding_scope: Literal["unit", "line"]
    adjustments: Sequence[Adjustment]
    rejected: Sequence[RejectedRule]
    source: Source
    version: int
    computed_at: Instant
    valid_until: Instant | None


def quote(product_id: str, location: str, sheet: PriceSheet, segment: Segment, quantity: int, source: Source) -> Quote:
    """Quote `quantity` units to a customer of `segment`, by the sheet of this product at this location, whose names in
    the sheet may be left out. `quantity` is from 1 to `MAX_QUANTITY`."""
    # Everything is looked up once, and called only where there is something to do: a batch makes a thousand of these.
    called, prices = ("member", sheet.member) if segment is MEMBER else ("everyone", sheet.everyone)
    if isinstance(prices, int):
        paid, changes, rejected = prices, sheet.changes, sheet.rejected
    else:
        tier = prices.tiers[0] if len(prices.tiers) == 1 else _tier(prices.tiers, quantity)
        paid, changes, rejected = tier.final, sheet.changes + prices.changes, sheet.rejected + prices.rejected
        if not prices.promoted == tier.before_floor == paid:
            changes += _of_quantity_and_floor(sheet, prices.promoted, tier)
    amounts = AMOUNTS[sheet.decimals]
    listed = base = final = amounts[sheet.list_price]
    rate = NO_DISCOUNT
    if sheet.base_price != sheet.list_price:
        base = final = amounts[sheet.base_price]
    if paid != sheet.base_price:
        final, rate = amounts[paid], discount_rate(sheet.base_price, paid)
    return Quote(  # by position, which is quicker
        product_id,
        location,
        sheet.currency,
        called,
        quantity,
        listed,
        base,
        rate,
        final,
        final if quantity == 1 else amounts[paid * quantity],
        "line" if sheet.line_rounding else "unit",
        _adjustments(sheet.list_price, changes, amounts) if changes else (),
        [RejectedRule(r.rule, r.name, r.reason) for r in rejected] if rejected else (),
        source,
        sheet.version,
        INSTANTS[sheet.computed_at],
        None if sheet.valid_until is None else INSTANTS[sheet.valid_until],
    )


def _tier(tiers: tuple[Tier, ...], quantity: int) -> Tier:
    return next(tier for tier in reversed(tiers) if tier.min_quantity <= quantity)


def discount_rate(scaled_base: int, scaled_final: int) -> Number:
    """The share of the base price that promotions, tiers and floor took off, with four decimals."""
    base, final = unscale(scaled_base), unscale(scaled_final)
    return _RATES[((base - final) * 2 * SCALE + base) // (2 * base) if base else 0]


class _Written(dict[int, msgspec.Raw]):
    """Texts by what they say. Each is made when it is first asked for; all are forgotten when there are `most`, since
    to look for those that nobody wants costs more than to make the others again."""

    def __init__(self, write: Callable[[int], msgspec.Raw], most: int) -> None:
        self._write, self._most = write, most

    def __missing__(self, value: int) -> msgspec.Raw:
        if len(self) >= self._most:
            self.clear()
        text = self[value] = self._write(value)
        return text


def _scaled(decimals: int, value: int) -> Number:
    return _number(unscale(value), decimals)


def _number(value: int, decimals: int) -> Number:
    """`value` / 10^`decimals` with all its decimals: 1290 is 12.90 with two."""
    digits = str(value)
    if not decimals:
        return Number(digits)
    if len(digits) <= decimals + 1:  # 5 is 0.05, and -5 is -0.05
        digits = f"{value:0{decimals + 1 + (value < 0)}d}"
    return Number(f"{digits[:-decimals]}.{digits[-decimals:]}")


def _instant(ms: int) -> Instant:
    return Instant(msgspec.json.encode(_EPOCH + timedelta(milliseconds=ms)))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

AMOUNTS = [_Written(partial(_scaled, decimals), MOST_AMOUNTS) for decimals in range(MOST_DECIMALS + 1)]
"""By the decimals of the currency, which are all written, and by the scaled amount, rounded to whole minor units."""

INSTANTS = _Written(_instant, MOST_OTHERS)
"""By ms since 1970, UTC."""

_RATES = _Written(partial(_number, decimals=4), MOST_OTHERS)
NO_DISCOUNT = _RATES[0]


def _of_quantity_and_floor(sheet: PriceSheet, promoted: int, tier: Tier) -> tuple[Change, ...]:
    moves = (("quantity_tier", tier.before_floor - promoted), ("floor", tier.final - tier.before_floor))
    return tuple(Change(step, sheet.policy, sheet.policy_name, moved) for step, moved in moves)


def _adjustments(list_price: int, changes: Sequence[Change], amounts: _Written) -> list[Adjustment]:
    """Each step as the difference of two rounded prices, so that the amounts always add up to the price,
    also where fractions of a minor unit are carried to the line."""
    adjustments, price, shown = [], list_price, unscale(list_price)
    for change in changes:
        if change.amount:
            price += change.amount
            before, shown = shown, unscale(price)
            difference = amounts[(shown - before) * SCALE]
            adjustments.append(Adjustment(change.step, change.rule, change.name, difference, amounts[price]))
    return adjustments
