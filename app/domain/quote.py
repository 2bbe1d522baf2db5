"""A quote: one sheet in one context. A few integer operations, no I/O."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Literal

import msgspec

from app.domain.columns import Segment
from app.domain.money import SCALE, to_decimal, unscale
from app.domain.sheet import Change, PriceSheet

Source = Literal["cache", "database", "stale", "simulation"]

MAX_QUANTITY = 1_000_000

MAX_ITEMS = 1000
"""In one batch of requests."""


class Adjustment(msgspec.Struct, frozen=True):
    """One step from the list price to the final price. `amount` is per unit and signed, `price` is the
    unit price after it; both have exactly the currency's decimals."""

    step: str
    rule: str | None
    name: str | None
    amount: Decimal
    price: Decimal


class RejectedRule(msgspec.Struct, frozen=True):
    rule: str
    name: str
    reason: str


class Quote(msgspec.Struct, frozen=True):
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
    decimals = sheet.decimals
    prices = sheet.of(segment)
    tier = next(t for t in reversed(prices.tiers) if t.min_quantity <= quantity)
    changes = [
        *sheet.changes,
        *prices.changes,
        Change("quantity_tier", sheet.policy, sheet.policy_name, tier.before_floor - prices.promoted),
        Change("floor", sheet.policy, sheet.policy_name, tier.final - tier.before_floor),
    ]
    base, final = unscale(sheet.base_price), unscale(tier.final)
    rejected = [*sheet.rejected, *prices.rejected]
    return Quote(
        product_id=sheet.product_id,
        location=sheet.location,
        currency=sheet.currency,
        segment=segment.name.lower(),
        quantity=quantity,
        list_price=to_decimal(unscale(sheet.list_price), decimals),
        base_price=to_decimal(base, decimals),
        discount_rate=discount_rate(base, final),
        final_price=to_decimal(final, decimals),
        total=to_decimal((tier.final * quantity + SCALE // 2) // SCALE, decimals),
        rounding_scope="line" if sheet.line_rounding else "unit",
        adjustments=_adjustments(sheet.list_price, changes, decimals),
        rejected=[RejectedRule(r.rule, r.name, r.reason) for r in rejected],
        source=source,
        version=sheet.version,
        computed_at=instant(sheet.computed_at),
        valid_until=None if sheet.valid_until is None else instant(sheet.valid_until),
    )


@lru_cache(4096)
def discount_rate(base: int, final: int) -> Decimal:
    """The share of the base price that promotions, tiers and floor took off, with four decimals."""
    return Decimal(((base - final) * 2 * SCALE + base) // (2 * base) if base else 0).scaleb(-4)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(4096)  # sheets that were computed together share theirs
def instant(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _adjustments(list_price: int, changes: list[Change], decimals: int) -> list[Adjustment]:
    """Each step as the difference of two rounded prices, so that the amounts always add up to the price,
    also where fractions of a minor unit are carried to the line."""
    adjustments, price = [], list_price
    for change in changes:
        if change.amount:
            before, price = price, price + change.amount
            adjustments.append(
                Adjustment(
                    change.step,
                    change.rule,
                    change.name,
                    to_decimal(unscale(price) - unscale(before), decimals),
                    to_decimal(unscale(price), decimals),
                )
            )
    return adjustments
