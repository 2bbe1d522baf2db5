"""Price sheets of whole batches as JSON, written column by column.

Byte for byte what `encode_sheet` makes of each row's `PriceSheet`, at a fraction of its cost: there is no object per
adjustment, only pieces of text, put together once per row.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from app.domain.columns import ABSENT, NEVER, Column, Rules, Segment
from app.domain.promotions import APPLIED, OUTCOMES
from app.domain.sheet import EncodedSheet, Label, Labels
from app.domain.sheets import POLICY_REASONS, STEPS, Sheets

_to_json = msgspec.json.Encoder().encode


def encode_rows(
    sheets: Sheets, rules: Rules, labels: Labels, versions: Column, computed_at: int, chosen: Column
) -> list[EncodedSheet]:
    """The rows whose indices are `chosen` (ascending), in that order, with these versions."""
    inputs = sheets.inputs[chosen]
    products, places = inputs["product_key"].tolist(), inputs["location_key"].tolist()
    valid_until = [None if until == NEVER else until for until in sheets.promoted.valid_until[chosen].tolist()]
    policies = _policy_texts(sheets.policy[chosen], rules, labels)
    product_texts = {key: _text(name) for key, name in labels.products.items()}
    place_texts = {
        key: f'{_text(location)},"{currency.code}",{currency.decimals}'
        for key, (location, currency) in labels.locations.items()
    }
    # The order of `PriceSheet`'s fields.
    payloads = [
        f"[{product},{place},{version},{computed_at},{'null' if until is None else until},"
        f"{'true' if by_line else 'false'},{list_price},{base_price},{floor},"
        f"{policy},[{changes}],[{rejected}],{everyone},{member}]".encode()
        for (
            product, place, version, until, by_line, list_price, base_price, floor,
            policy, changes, rejected, everyone, member,
        ) in zip(
            map(product_texts.__getitem__, products),
            map(place_texts.__getitem__, places),
            versions.tolist(),
            valid_until,
            (sheets.line_rounding[chosen] == 1).tolist(),
            sheets.steps[0, chosen].tolist(),
            sheets.steps[-1, chosen].tolist(),
            sheets.floor[chosen].tolist(),
            policies,
            _changes(sheets, chosen, policies),
            _refusals(sheets, chosen, policies),
            *_segments(sheets, rules, labels, chosen),
            strict=True,
        )
    ]  # fmt: skip
    return list(
        map(
            EncodedSheet,
            products,
            places,
            map(labels.products.__getitem__, products),
            (labels.locations[place][0] for place in places),
            versions.tolist(),
            valid_until,
            payloads,
        )
    )


def _text(value: Any) -> str:
    return _to_json(value).decode()


def _label_text(label: Label) -> str:
    """The two fields, id and name, that a label is wherever it is named."""
    return _text(label)[1:-1]


def _policy_texts(policy: Column, rules: Rules, labels: Labels) -> list[str]:
    """Each row's policy; `policy` are indices."""
    texts = {ABSENT: "null,null"}
    for index in np.unique(policy[policy != ABSENT]).tolist():
        texts[index] = _label_text(labels.policies[int(rules.policies["policy_key"][index])])
    return [texts[index] for index in policy.tolist()]


def _changes(sheets: Sheets, chosen: Column, policies: Sequence[str]) -> list[str]:
    """What the policy's steps changed."""
    steps = sheets.steps[:, chosen]
    moved = steps[1:] - steps[:-1]
    row, step = np.nonzero(moved.T)
    moves = zip(row.tolist(), step.tolist(), moved[step, row].tolist(), strict=True)
    return _lists(len(chosen), ((row, f'["{STEPS[step + 1]}",{policies[row]},{by}]') for row, step, by in moves))


def _refusals(sheets: Sheets, chosen: Column, policies: Sequence[str]) -> list[str]:
    """Why the policy left the list price alone."""
    reason = sheets.policy_reason[chosen]
    row = np.flatnonzero(reason)
    pairs = zip(row.tolist(), reason[row].tolist(), strict=True)
    return _lists(len(chosen), ((row, f'[{policies[row]},"{POLICY_REASONS[why]}"]') for row, why in pairs))


def _segments(sheets: Sheets, rules: Rules, labels: Labels, chosen: Column) -> Iterator[list[str]]:
    """What each segment pays."""
    promoted = sheets.promoted
    place = np.full(len(sheets), ABSENT, np.int64)
    place[chosen] = np.arange(len(chosen))
    pairs = np.flatnonzero(place[promoted.row] != ABSENT)
    rows = place[promoted.row[pairs]].tolist()
    keys = rules.promotions["promotion_key"][promoted.rule[pairs]].tolist()
    named = [_label_text(labels.promotions[key]) for key in keys]
    alone = np.all(sheets.tier_quantity[chosen, 1:] == 0, axis=1)
    alone[rows] = False
    for segment in Segment:
        price = promoted.prices[segment, chosen]
        unmoved = (sheets.before_floor[segment, chosen, 0] == price) & (sheets.final[segment, chosen, 0] == price)
        explained = np.flatnonzero(~(alone & unmoved))
        outcomes = promoted.outcome[segment, pairs].tolist()
        changes = zip(rows, named, outcomes, promoted.change[segment, pairs].tolist(), strict=True)
        refused = zip(rows, named, outcomes, strict=True)
        changed = _lists(
            len(chosen),
            ((row, f'["promotion",{name},{change}]') for row, name, why, change in changes if why == APPLIED),
        )
        rejected = _lists(
            len(chosen), ((row, f'[{name},"{OUTCOMES[why]}"]') for row, name, why in refused if why != APPLIED)
        )
        texts = list(map(str, price.tolist()))
        for row, tiers in zip(explained.tolist(), _tiers(sheets, segment, chosen[explained]), strict=True):
            texts[row] = f"[{texts[row]},[{changed[row]}],[{rejected[row]}],[{tiers}]]"
        yield texts


def _tiers(sheets: Sheets, segment: Segment, chosen: Column) -> list[str]:
    before, final = sheets.before_floor[segment, chosen], sheets.final[segment, chosen]
    texts = [f"[1,{b},{f}]" for b, f in zip(before[:, 0].tolist(), final[:, 0].tolist(), strict=True)]
    for nth in range(1, sheets.tier_quantity.shape[1]):
        quantity = sheets.tier_quantity[chosen, nth]
        row = np.flatnonzero(quantity)
        columns = (row, quantity[row], before[row, nth], final[row, nth])
        for index, q, b, f in zip(*(column.tolist() for column in columns), strict=True):
            texts[index] += f",[{q},{b},{f}]"
    return texts


def _lists(n: int, items: Iterable[tuple[int, str]]) -> list[str]:
    """For each of `n` rows the text of a list's items, in their order."""
    texts = [""] * n
    for row, item in items:
        before = texts[row]
        texts[row] = f"{before},{item}" if before else item
    return texts
