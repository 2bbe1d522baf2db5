"""What happens in the market during a run: a few hot products, and events about them, all from one seed."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

DECIMALS = {"NY": 2, "LA": 2, "TYO": 0}
"""The locations, and how many decimals their currency has. NY and LA have US dollars."""

DOLLARS = ("NY", "LA")

Event = dict[str, Any]
"""An envelope as JSON has it: id, type, subject, location, data."""


class Row(NamedTuple):
    """A product at a location: what has a price."""

    product: str
    location: str


class Product(NamedTuple):
    product_id: str
    category: str


SIGNALS = {
    "list_price.changed": 24,
    "cost.changed": 18,
    "competitor_price.changed": 14,
    "stock.changed": 12,
    "demand.changed": 12,
}
RULES = {"policy.changed": 8, "promotion.changed": 8}
EVERYTHING = SIGNALS | RULES | {"recalculate": 0.1}


class Market:
    """What happens depends on the seed alone, but for promotions' windows, which are near the present. `weights` says
    how often each type of event happens."""

    def __init__(self, products: Sequence[Product], seed: int, weights: Mapping[str, float] = EVERYTHING) -> None:
        self.products = list(products)
        self.rows = [Row(product.product_id, location) for product in self.products for location in DECIMALS]
        self._random = random.Random(f"market {seed}")
        self._weights = weights
        self._seed, self._count = seed, 0

    def first_prices(self) -> list[Event]:
        """A list price for every row, by which all of them come to be known."""
        return [
            self._event("list_price.changed", row.product, row.location, {"amount": self._amount(row.location)})
            for row in self.rows
        ]

    def next(self) -> Event:
        type_ = self._random.choices(list(self._weights), list(self._weights.values()))[0]
        product, location = self._random.choice(self.products), self._random.choice(list(DECIMALS))
        if type_ == "recalculate":
            return self._event(type_, "*", "*", {})
        if type_ == "policy.changed":
            return self._event(type_, product.product_id, "*", self._policy(product, location))
        if type_ == "promotion.changed":
            return self._event(type_, product.product_id, "*", self._promotion(product))
        subject, breadth = product.product_id, self._random.random()
        data = self._signal(type_, location)
        if breadth < 0.04:
            subject = product.category
        elif breadth < 0.06:
            location, data = "*", self._signal(type_, "NY")
            if "amount" in data:
                data["currency"] = "USD"
        return self._event(type_, subject, location, data)

    def _event(self, type_: str, subject: str, location: str, data: dict[str, Any]) -> Event:
        self._count += 1
        event_id = f"c{self._seed}-{self._count}"
        return {"id": event_id, "type": type_, "subject": subject, "location": location, "data": data}

    def _signal(self, type_: str, location: str) -> dict[str, Any]:
        if type_ == "demand.changed":
            return {"index": self._random.randrange(5_000, 20_000) / 10_000}
        if type_ == "stock.changed":
            return {"quantity": self._random.randrange(100)}
        return {"amount": self._amount(location)}

    def _amount(self, location: str) -> float | int:
        minor = self._random.randrange(100, 10_000)
        return minor / 100 if DECIMALS[location] else minor

    def _policy(self, product: Product, location: str) -> dict[str, Any]:
        policy_id = f"p-{product.product_id}-{location}"
        if self._random.random() < 0.2:
            return {"removed": policy_id}
        kind = self._random.choice(["list", "market", "competitor", "cost_plus", "markdown"])
        policy = {
            "policy_id": policy_id, "name": "P", "product_id": product.product_id, "location": location, "kind": kind,
            "rate_percent": self._random.randrange(0, 60), "stock_threshold": self._random.randrange(100),
        }  # fmt: skip
        if self._random.random() < 0.5:
            policy["floor"] = self._amount(location)
        return {"policy": policy}

    def _promotion(self, product: Product) -> dict[str, Any]:
        """Of the product for everyone, or of its category for members; each third begins or ends soon."""
        wide = self._random.random() < 0.2
        promotion_id = f"o-{product.category if wide else product.product_id}".replace(" ", "-")
        if self._random.random() < 0.3:
            return {"removed": promotion_id}
        promotion: dict[str, Any] = {
            "promotion_id": promotion_id, "name": "O", "kind": "percent", "value": self._random.randrange(1, 50),
            "segment": "member" if wide else "everyone", "priority": 2 if wide else 1,
        }  # fmt: skip
        promotion |= {"category": product.category} if wide else {"product_id": product.product_id}
        edge, soon = self._random.random(), timedelta(seconds=self._random.randrange(2, 30))
        if edge < 0.33:
            promotion["starts_at"] = (datetime.now(UTC) + soon).isoformat()
        elif edge < 0.66:
            promotion["ends_at"] = (datetime.now(UTC) + soon).isoformat()
        return {"promotion": promotion}
