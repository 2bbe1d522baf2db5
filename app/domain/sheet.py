"""One price sheet: everything needed to quote one product at one location to anyone.

This is what is cached and what history keeps, as JSON arrays (field names would be half its size).
Scaled amounts are minor units times `money.SCALE`; instants are ms since 1970, UTC. The structs are kept from
the garbage collector (they hold no cycles): a batch makes hundreds of thousands, and looking through them again
and again would take four times as long as making them.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np

from app.domain.columns import ABSENT, NEVER, Column, Rules, Segment
from app.domain.money import Currency
from app.domain.promotions import APPLIED, OUTCOMES
from app.domain.sheets import POLICY_REASONS, STEPS, Sheets


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
    everyone: SegmentPrices
    member: SegmentPrices

    def of(self, segment: Segment) -> SegmentPrices:
        return self.member if segment is Segment.MEMBER else self.everyone


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


def rows_to_sheets(
    sheets: Sheets, rules: Rules, labels: Labels, versions: Column, computed_at: int, chosen: Column
) -> Iterator[PriceSheet]:
    """The rows whose indices are `chosen` (ascending) as price sheets, in that order, with these versions."""
    policy_keys = rules.policies["policy_key"].tolist()
    columns = zip(
        sheets.inputs["product_key"][chosen].tolist(),
        sheets.inputs["location_key"][chosen].tolist(),
        versions.tolist(),
        sheets.policy[chosen].tolist(),
        sheets.policy_reason[chosen].tolist(),
        sheets.floor[chosen].tolist(),
        (sheets.line_rounding[chosen] == 1).tolist(),
        sheets.promoted.valid_until[chosen].tolist(),
        _rows(sheets.steps[:, chosen]),
        _segment_prices(sheets, rules, labels, chosen, Segment.EVERYONE),
        _segment_prices(sheets, rules, labels, chosen, Segment.MEMBER),
        strict=True,
    )
    for product, place, version, policy, reason, floor, line_rounding, until, steps, everyone, member in columns:
        location, currency = labels.locations[place]
        label = labels.policies[policy_keys[policy]] if policy != ABSENT else None
        changes, rejected = _base_changes(steps, label, reason)
        yield PriceSheet(
            product_id=labels.products[product],
            location=location,
            currency=currency.code,
            decimals=currency.decimals,
            version=version,
            computed_at=computed_at,
            valid_until=None if until == NEVER else until,
            line_rounding=line_rounding,
            list_price=steps[0],
            base_price=steps[-1],
            floor=floor,
            policy=label.id if label else None,
            policy_name=label.name if label else None,
            changes=changes,
            rejected=rejected,
            everyone=everyone,
            member=member,
        )


def _rows(columns: Column) -> Iterator[tuple[int, ...]]:
    """The rows of columns, one at a time: a list per row, all at once, would keep the garbage collector busy."""
    return zip(*columns.tolist(), strict=True)


def _base_changes(
    steps: tuple[int, ...], label: Label | None, reason: int
) -> tuple[tuple[Change, ...], tuple[Rejected, ...]]:
    if label is None:
        return (), ()
    changes = [
        Change(step, label.id, label.name, after - before)
        for step, before, after in zip(STEPS[1:], steps, steps[1:], strict=False)
        if after != before
    ]
    rejected = (Rejected(label.id, label.name, POLICY_REASONS[reason]),) if reason else ()
    return tuple(changes), rejected


def _segment_prices(
    sheets: Sheets, rules: Rules, labels: Labels, chosen: Column, segment: Segment
) -> Iterator[SegmentPrices]:
    """What `segment` pays, row by row of `chosen`, which the long columns of promotions follow too."""
    promoted = sheets.promoted
    is_chosen = np.zeros(len(sheets), bool)
    is_chosen[chosen] = True
    pairs = np.flatnonzero(is_chosen[promoted.row])
    candidates = zip(
        map(labels.promotions.__getitem__, rules.promotions["promotion_key"][promoted.rule[pairs]].tolist()),
        promoted.outcome[segment, pairs].tolist(),
        promoted.change[segment, pairs].tolist(),
        strict=True,
    )
    columns = zip(
        promoted.prices[segment, chosen].tolist(),
        np.bincount(promoted.row[pairs], minlength=len(sheets))[chosen].tolist(),
        _rows(sheets.tier_quantity[chosen].T),
        _rows(sheets.before_floor[segment, chosen].T),
        _rows(sheets.final[segment, chosen].T),
        strict=True,
    )
    for price, count, quantities, before_floor, final in columns:
        changes: list[Change] = []
        rejected: list[Rejected] = []
        for (rule, name), outcome, change in islice(candidates, count):
            if outcome == APPLIED:
                changes.append(Change("promotion", rule, name, change))
            else:
                rejected.append(Rejected(rule, name, OUTCOMES[outcome]))
        tiers = [tier for tier in map(Tier, quantities, before_floor, final) if tier.min_quantity]
        yield SegmentPrices(price, tuple(changes), tuple(rejected), tuple(tiers))


encode_sheet = msgspec.json.Encoder().encode
decode_sheet = msgspec.json.Decoder(PriceSheet).decode
