"""Batches of rows, rules and instants, small enough to meet each other and with every edge in them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from app.domain.columns import (
    ABSENT,
    NEVER,
    POLICIES,
    PRICE_INPUTS,
    PROMOTIONS,
    TIERS,
    PolicyKind,
    PromotionKind,
    Rules,
    Segment,
    Table,
)
from app.domain.encoding import encode_rows
from app.domain.money import MAX_AMOUNT, currency
from app.domain.promotions import NEAR_MS
from app.domain.sheet import EncodedSheet, Label, Labels, PriceSheet
from app.domain.sheets import Sheets, compute_sheets
from tests.support.sheets import spelled_out

NOON = 10 * NEAR_MS
HOUR = 3_600_000

CURRENCIES = {1: currency("USD"), 2: currency("JPY"), 3: currency("KWD"), 4: currency("USD")}
"""By location key."""

amounts = st.one_of(
    st.sampled_from([0, 1, 99, 100, 1_999, MAX_AMOUNT - 1, MAX_AMOUNT]),
    st.integers(0, 5_000),
    st.integers(0, MAX_AMOUNT),
)
prices = st.one_of(st.integers(1, 5_000), amounts)
instants = st.one_of(
    st.sampled_from([NOON - NEAR_MS, NOON - NEAR_MS + 1, NOON - 1, NOON, NOON + 1]),
    st.integers(NOON - 30 * HOUR, NOON + 30 * HOUR),
)


def or_absent(values: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.one_of(st.just(ABSENT), values)


@dataclass(frozen=True)
class Batch:
    inputs: Table
    rules: Rules
    as_of: int = NOON

    def compute(self) -> Sheets:
        return compute_sheets(self.inputs, self.rules, self.as_of)

    def sheets(self) -> list[PriceSheet]:
        return visible(self.compute(), self.rules, self.as_of)

    def encoded(self) -> list[EncodedSheet]:
        return encoded(self.compute(), self.rules, self.as_of)

    def at(self, as_of: int) -> "Batch":
        return replace(self, as_of=as_of)

    def rows(self, index: Any) -> "Batch":
        return replace(self, inputs=self.inputs[index])

    def with_rules(self, **tables: Table) -> "Batch":
        return replace(self, rules=self.rules._replace(**tables))


def visible(sheets: Sheets, rules: Rules, as_of: int = NOON) -> list[PriceSheet]:
    return [spelled_out(sheet.payload) for sheet in encoded(sheets, rules, as_of)]


def encoded(sheets: Sheets, rules: Rules, as_of: int = NOON) -> list[EncodedSheet]:
    every = np.arange(len(sheets))
    return encode_rows(sheets, rules, labels_of(rules), every * 0 + 7, as_of, every)


def labels_of(rules: Rules) -> Labels:
    return Labels(
        products={key: f"P-{key}" for key in range(10)},
        locations={key: (f"L-{key}", currency) for key, currency in CURRENCIES.items()},
        policies=_named(rules.policies, "policy_key", "pol", 'Policy \\ "%s" {0} \x7f'),
        promotions=_named(rules.promotions, "promotion_key", "pro", "Angebot für 日本 \U0001f9c3 /"),
    )


def _named(rules: Table, key: str, prefix: str, name: str) -> dict[int, Label]:
    """Names that would show if they were not written as JSON, another one for each `name_hash`."""
    pairs = zip(rules[key].tolist(), rules["name_hash"].tolist(), strict=True)
    return {key: Label(f"{prefix}-{key}", f"{name} {key}.{hashed}") for key, hashed in pairs}


def table(dtype: np.dtype[Any], *records: dict[str, int]) -> Table:
    """Records of that type; a field that is not given is 0, or `ABSENT` where that means "unrestricted"."""
    made = np.zeros(len(records), dtype)
    for name in dtype.names or ():
        unset = ABSENT if name in _ABSENT_UNLESS_GIVEN else 0
        made[name] = [record.get(name, unset) for record in records]
    return made


_ABSENT_UNLESS_GIVEN = {
    "product_key", "category_key", "department_key", "location_key", "currency_number", "cost",
    "competitor_price", "demand_bp", "stock", "min_margin_bp", "floor", "ceiling", "max_change_bp",
}  # fmt: skip


def row(**fields: int) -> dict[str, int]:
    location = fields.get("location_key", 1)
    where = {"product_key": 1, "location_key": location, "currency_number": CURRENCIES[location].number}
    return {"list_price": 1_000} | where | fields


def promotion(key: int = 1, **fields: int) -> dict[str, int]:
    return {
        "promotion_key": key, "kind": PromotionKind.PERCENT, "value": 1_000, "stackable": 1, "priority": 100,
        "ends_at": NEVER, "name_hash": 1,
    } | fields  # fmt: skip


def policy(key: int = 1, **fields: int) -> dict[str, int]:
    return {"policy_key": key, "name_hash": 1} | fields


def batch(
    rows: list[dict[str, int]],
    policies: list[dict[str, int]] | None = None,
    promotions: list[dict[str, int]] | None = None,
    tiers: list[dict[str, int]] | None = None,
) -> Batch:
    return Batch(
        table(PRICE_INPUTS, *rows),
        Rules(table(POLICIES, *policies or []), table(TIERS, *tiers or []), table(PROMOTIONS, *promotions or [])),
    )


_PRODUCT_GROUPS = {1: (1, 1), 2: (1, 1), 3: (2, 1), 4: (ABSENT, 2), 5: (ABSENT, ABSENT)}
"""Category and department by product key."""


@st.composite
def _rows(draw: st.DrawFn) -> dict[str, int]:
    product = draw(st.sampled_from(sorted(_PRODUCT_GROUPS)))
    category, department = _PRODUCT_GROUPS[product]
    return row(
        product_key=product,
        category_key=category,
        department_key=department,
        location_key=draw(st.sampled_from(sorted(CURRENCIES))),
        list_price=draw(prices),
        cost=draw(or_absent(prices)),
        competitor_price=draw(or_absent(prices)),
        demand_bp=draw(or_absent(st.one_of(st.integers(8_000, 13_000), st.sampled_from([0, 10_000, 100_000])))),
        stock=draw(or_absent(st.sampled_from([0, 9, 10, 10**12]))),
    )


_SCOPES = [{}, {"product_key": 1}, {"product_key": 2}, {"category_key": 1}, {"department_key": 1}]
_PLACES = [{}, {"location_key": 1}, {"location_key": 2}, {"currency_number": CURRENCIES[1].number}]
scopes = st.builds(lambda scope, place: scope | place, st.sampled_from(_SCOPES), st.sampled_from(_PLACES))

rates = st.one_of(st.sampled_from([0, 1, 5_000, 10_000]), st.integers(0, 10_000))


@st.composite
def _policies(draw: st.DrawFn, key: int) -> dict[str, int]:
    kind = draw(st.sampled_from(PolicyKind))
    high = kind in (PolicyKind.MARKET, PolicyKind.COST_PLUS)
    floor, ceiling = draw(or_absent(prices)), draw(or_absent(prices))
    if ABSENT != ceiling < floor:
        floor, ceiling = ceiling, floor
    increment = draw(st.one_of(st.just(0), st.sampled_from([1, 5, 10, 100, 1_000, MAX_AMOUNT])))
    return policy(
        key,
        kind=kind,
        rate_bp=draw(st.integers(0, 40_000) if high else rates),
        amount=draw(st.one_of(st.just(0), prices)),
        threshold=10,
        min_margin_bp=draw(or_absent(st.one_of(st.integers(0, 9_999), st.just(9_999)))),
        floor=floor,
        ceiling=ceiling,
        max_change_bp=draw(or_absent(st.one_of(st.integers(0, 3_000), st.just(40_000)))),
        rounding_increment=increment,
        rounding_ending=draw(st.one_of(st.just(0), st.just(increment - 1), st.integers(0, increment - 1)))
        if increment
        else 0,
        line_rounding=draw(st.integers(0, 1)),
        name_hash=draw(st.integers(1, 3)),
    )


@st.composite
def _promotions(draw: st.DrawFn, key: int) -> dict[str, int]:
    kind = draw(st.sampled_from(PromotionKind))
    window = sorted(draw(st.tuples(instants, instants)))
    return promotion(
        key,
        kind=kind,
        value=draw(rates if kind is PromotionKind.PERCENT else prices),
        segment=draw(st.sampled_from(Segment)),
        stackable=draw(st.integers(0, 1)),
        priority=draw(st.integers(0, 3)),
        starts_at=draw(st.sampled_from([0, window[0]])),
        ends_at=draw(st.sampled_from([window[1] + 1, NEVER])),
        name_hash=draw(st.integers(1, 3)),
    ) | draw(scopes)


@st.composite
def _tiers(draw: st.DrawFn, key: int) -> list[dict[str, int]]:
    quantities = draw(st.lists(st.integers(2, 50), max_size=3, unique=True))
    offs = draw(st.lists(rates, min_size=len(quantities), max_size=len(quantities)))
    return [
        {"policy_key": key, "min_quantity": quantity, "off_bp": off}
        for quantity, off in zip(sorted(quantities), sorted(offs), strict=True)
    ]


@st.composite
def batches(draw: st.DrawFn, max_rows: int = 4) -> Batch:
    """Rows and rules as a store would give them: one policy per scope, rules in order of their keys."""
    policy_scopes = draw(st.lists(scopes, max_size=4, unique_by=lambda scope: tuple(scope.items())))
    keys = [3 * nth + 1 for nth in range(len(policy_scopes))]
    return batch(
        rows=draw(st.lists(_rows(), min_size=1, max_size=max_rows)),
        policies=[draw(_policies(key)) | scope for key, scope in zip(keys, policy_scopes, strict=True)],
        promotions=[draw(_promotions(nth + 1)) for nth in range(draw(st.integers(0, 4)))],
        tiers=[tier for key in keys for tier in draw(_tiers(key))],
    )
