"""What every price must be in the end: the accepted events, one after the other in the order of the stream.

The formula once more, as small as the market of these tests needs it, from docs/architecture.md.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from fractions import Fraction
from math import floor
from typing import Any, NamedTuple

from tests.chaos.market import DECIMALS, DOLLARS, Event, Product, Row

MAX_FACTOR = 50_000
ONE = 10_000


class Set(NamedTuple):
    """What an input was last set to, and by which event."""

    value: Any
    event_id: str


class Oracle:
    """`inputs` are by row and signal, `policies` by row, `promotions` by their id."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = products
        self.inputs: dict[tuple[Row, str], Set] = {}
        self.policies: dict[Row, Set] = {}
        self.promotions: dict[str, Set] = {}

    def apply(self, event: Event) -> None:
        type_, data = event["type"], event["data"]
        if type_ == "policy.changed":
            product, _, location = rule_of(event).removeprefix("p-").rpartition("-")
            self.policies[Row(product, location)] = Set(data.get("policy"), event["id"])
        elif type_ == "promotion.changed":
            self.promotions[rule_of(event)] = Set(data.get("promotion"), event["id"])
        elif type_ != "recalculate":
            for row in self.rows(event):
                self.inputs[row, type_.removesuffix(".changed")] = Set(_value(data, row.location), event["id"])

    def rows(self, event: Event) -> Iterable[Row]:
        """Those that a signal is about."""
        locations: tuple[str, ...] = (event["location"],)
        if event["location"] == "*":
            locations = DOLLARS if "currency" in event["data"] else tuple(DECIMALS)
        for product in self._products:
            if event["subject"] in product:
                yield from (Row(product.product_id, location) for location in locations)

    def price(self, row: Row, *, member: bool, at: datetime) -> int:
        """In the currency's minor unit."""
        policy = self.policies[row].value if row in self.policies else None
        price, least = self._base(row, policy or {"kind": "list"}), 0
        if policy and "floor" in policy:
            least = _minor(policy["floor"], row.location)
        price = max(price, least)
        for promotion in sorted(self._promotions(row, at), key=lambda p: p["priority"]):
            if member or promotion["segment"] == "everyone":
                price = _half_up(Fraction(price * (100 - promotion["value"]), 100))
        return max(price, least)

    def _base(self, row: Row, policy: dict[str, Any]) -> int:
        listed = self._get(row, "list_price")
        assert listed is not None
        kind, rate = policy["kind"], Fraction(policy.get("rate_percent", 0), 100)
        if kind == "market" and (demand := self._get(row, "demand")) is not None:
            factor = min(max(ONE + _half_up((demand - ONE) * rate), 0), MAX_FACTOR)
            return _half_up(Fraction(listed * factor, ONE))
        if kind == "competitor" and (price := self._get(row, "competitor_price")) is not None:
            return _half_up(price * (1 - rate))
        if kind == "cost_plus" and (cost := self._get(row, "cost")) is not None:
            return _half_up(cost * (1 + rate))
        stock = self._get(row, "stock")
        if kind == "markdown" and stock is not None and stock >= policy["stock_threshold"]:
            return _half_up(listed * (1 - rate))
        return listed

    def _get(self, row: Row, signal: str) -> int | None:
        found = self.inputs.get((row, signal))
        return None if found is None else int(found.value)

    def _promotions(self, row: Row, at: datetime) -> Iterable[dict[str, Any]]:
        (category,) = [product.category for product in self._products if product.product_id == row.product]
        for promotion in (found.value for found in self.promotions.values() if found.value is not None):
            concerned = row.product == promotion.get("product_id") or category == promotion.get("category")
            begun = "starts_at" not in promotion or datetime.fromisoformat(promotion["starts_at"]) <= at
            ended = "ends_at" in promotion and datetime.fromisoformat(promotion["ends_at"]) <= at
            if concerned and begun and not ended:
                yield promotion


def rule_of(event: Event) -> str:
    """The id of the rule that an event is about."""
    data, kind = event["data"], event["type"].removesuffix(".changed")
    return str(data["removed"] if "removed" in data else data[kind][f"{kind}_id"])


def _value(data: dict[str, Any], location: str) -> int:
    if "index" in data:
        return round(float(data["index"]) * ONE)
    return int(data["quantity"]) if "quantity" in data else _minor(data["amount"], location)


def _minor(amount: float, location: str) -> int:
    return round(amount * float(10 ** DECIMALS[location]))


def _half_up(amount: Fraction) -> int:
    return floor(amount + Fraction(1, 2))
