"""A quote: one sheet in one context. A few integer operations, no I/O."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Literal

import msgspec

from app.domain.columns import Segment
from app.domain.money import SCALE, to_decimal, unscale
from app.domain.sheet import Change, PriceSheet, SegmentPrices, Tier

Source = Literal["cache", "database", "stale", "simulation"]

MAX_QUANTITY = 1_000_000

MAX_ITEMS = 1000
"""In one batch of requests."""


class Adjustment(msgspec.Struct, frozen=True, gc=False):
    """One step from the list price to the final price. `amount` is per unit and signed, `price` is the
    unit price after it; both have exactly the currency's decimals."""

    step: str
    rule: str | None
    name: str | None
    amount: Decimal
    price: Decimal


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
    list_price: Decimal
    base_price: Decimal
    discount_rate: Decimal
    final_price: Decimal
    total: Decimal
    rounding_scope: Literal["unit", "line"]
    adjustments: list[Adjustment]
    rejected: list[RejectedRule]
    source: Source
    version: int
    computed_at: datetime
    valid_until: datetime | None


def quote(sheet: PriceSheet, segment: Segment, quantity: int, source: Source) -> Quote:
    """Quote `quantity` units to a customer of `segment`. `quantity` is from 1 to `MAX_QUANTITY`."""
    prices = sheet.of(segment)
    tier = _tier(prices.tiers, quantity)
    decimals, listed, base, final = sheet.decimals, sheet.list_price, sheet.base_price, tier.final
    return Quote(  # by position, which is quicker
        sheet.product_id,
        sheet.location,
        sheet.currency,
        "member" if segment is Segment.MEMBER else "everyone",
        quantity,
        amount(listed, decimals),
        amount(base, decimals),
        discount_rate(base, final),
        amount(final, decimals),
        amount(final * quantity, decimals),
        "line" if sheet.line_rounding else "unit",
        _adjustments(sheet, prices, tier),
        [RejectedRule(r.rule, r.name, r.reason) for r in sheet.rejected + prices.rejected],
        source,
        sheet.version,
        instant(sheet.computed_at),
        None if sheet.valid_until is None else instant(sheet.valid_until),
    )


def _tier(tiers: tuple[Tier, ...], quantity: int) -> Tier:
    if len(tiers) == 1:
        return tiers[0]
    return next(tier for tier in reversed(tiers) if tier.min_quantity <= quantity)


# Few amounts are many prices, and making a decimal costs more than finding it.
@lru_cache(8192)
def amount(scaled: int, decimals: int) -> Decimal:
    """A scaled amount rounded to whole minor units, with exactly the currency's decimals."""
    return to_decimal(unscale(scaled), decimals)


def discount_rate(scaled_base: int, scaled_final: int) -> Decimal:
    """The share of the base price that promotions, tiers and floor took off, with four decimals."""
    base, final = unscale(scaled_base), unscale(scaled_final)
    return to_decimal(((base - final) * 2 * SCALE + base) // (2 * base) if base else 0, 4)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(4096)  # sheets that were computed together share theirs
def instant(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _adjustments(sheet: PriceSheet, prices: SegmentPrices, tier: Tier) -> list[Adjustment]:
    """Each step as the difference of two rounded prices, so that the amounts always add up to the price,
    also where fractions of a minor unit are carried to the line."""
    changes = [*sheet.changes, *prices.changes]
    if tier.before_floor != prices.promoted:
        moved = tier.before_floor - prices.promoted
        changes.append(Change("quantity_tier", sheet.policy, sheet.policy_name, moved))
    if tier.final != tier.before_floor:
        changes.append(Change("floor", sheet.policy, sheet.policy_name, tier.final - tier.before_floor))
    adjustments, price, decimals = [], sheet.list_price, sheet.decimals
    for change in changes:
        if change.amount:
            before, price = price, price + change.amount
            moved = unscale(price) - unscale(before)
            adjustments.append(
                Adjustment(change.step, change.rule, change.name, to_decimal(moved, decimals), amount(price, decimals))
            )
    return adjustments
