"""Quotes as a client reads them."""

from datetime import datetime
from decimal import Decimal

import msgspec

from app.api.answers import encode
from app.domain.quote import Number, Quote, RejectedRule


class SentAdjustment(msgspec.Struct):
    step: str
    rule: str | None
    name: str | None
    amount: Decimal
    price: Decimal


class SentQuote(msgspec.Struct, forbid_unknown_fields=True):
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
    rounding_scope: str
    adjustments: list[SentAdjustment]
    rejected: list[RejectedRule]
    source: str
    version: int
    computed_at: datetime
    valid_until: datetime | None


def read(quote: Quote) -> SentQuote:
    return msgspec.json.decode(encode(quote), type=SentQuote)


def number(sent: Number) -> Decimal:
    return msgspec.json.decode(sent, type=Decimal)
