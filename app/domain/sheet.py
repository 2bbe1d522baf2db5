"""One price sheet: everything needed to quote one product at one location to anyone.

This is what is cached and what history keeps, as JSON arrays (field names would be half its size).
Scaled amounts are minor units times `money.SCALE`; instants are ms since 1970, UTC. The structs are kept from
the garbage collector (they hold no cycles): a batch makes hundreds of thousands, and looking through them again
and again would take four times as long as making them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from app.domain.money import Currency


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of the price: what it was called, which rule made it, by how much it moved (scaled)."""

    step: str
    rule: str | None
    name: str | None
    amount: int


class Rejected(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A rule that was considered and did not apply."""

    rule: str
    name: str
    reason: str


class Tier(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The price from `min_quantity` on: after the tier's discount, and after the floor (both scaled)."""

    min_quantity: int
    before_floor: int
    final: int


class SegmentPrices(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one segment pays: `promoted` (scaled) is the base price after `changes`."""

    promoted: int
    changes: tuple[Change, ...]
    rejected: tuple[Rejected, ...]
    tiers: tuple[Tier, ...]


class PriceSheet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`everyone` and `member` are what a segment pays, and how that came about. Where no promotion was considered and
    neither quantity nor floor matter, as for most, it is an amount alone (scaled), which is quicker in all ways."""

    product_id: str
    location: str
    currency: str
    decimals: int
    version: int
    computed_at: int
    valid_until: int | None
    line_rounding: bool
    list_price: int
    base_price: int
    floor: int
    policy: str | None
    policy_name: str | None
    changes: tuple[Change, ...]
    rejected: tuple[Rejected, ...]
    everyone: SegmentPrices | int
    member: SegmentPrices | int


class Label(NamedTuple):
    """What a rule is called outside: its public id and its name."""

    id: str
    name: str


class Labels(NamedTuple):
    """Names for keys, for as many as a batch mentions."""

    products: Mapping[int, str]
    locations: Mapping[int, tuple[str, Currency]]
    policies: Mapping[int, Label]
    promotions: Mapping[int, Label]


class EncodedSheet(msgspec.Struct, frozen=True, gc=False):
    """A sheet as it is stored and cached: `payload` is the `PriceSheet` as JSON, the rest is said in it too, but for
    the keys."""

    product_key: int
    location_key: int
    product_id: str
    location: str
    version: int
    valid_until: int | None
    payload: bytes


encode_sheet = msgspec.json.Encoder().encode
decode_sheet = msgspec.json.Decoder(PriceSheet).decode
