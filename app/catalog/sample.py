"""The built-in catalogue: 900 products at three locations, with every kind of policy and promotion in it.

It is for a newcomer's first minutes. P-100 at NY shows most at once: a policy that follows a competitor, its
margin guard, an ending of .99, two promotions that add up and two that do not apply. All of it is computed from
a product's number, so it is the same everywhere; every rule names one of its own departments, products or
locations, so it can share a database with a real catalogue.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from app.catalog.files import Part
from app.catalog.rows import Kind
from app.domain.money import to_decimal

NUMBERS = range(100, 1000)

_LOCATIONS = (
    {"location": "NY", "name": "New York", "currency": "USD", "time_zone": "America/New_York"},
    {"location": "LA", "name": "Los Angeles", "currency": "USD", "time_zone": "America/Los_Angeles"},
    {"location": "MIA", "name": "Miami", "currency": "USD", "time_zone": "America/New_York"},
)
_AT_LEAST_PERCENT = {"NY": 100, "LA": 96, "MIA": 92}
"""The list price at each location, as a share of that at NY."""


class _Range(NamedTuple):
    """Fifty products of one category: each kind in each size, and once more organic; the first at `cents`."""

    department: str
    category: str
    brand: str
    cents: int
    kinds: tuple[str, ...]
    sizes: tuple[str, ...]


_RANGES = (
    _Range("Coffee & Tea", "Coffee", "Morning Hill", 1299,
           ("Ethiopian Coffee", "Espresso Roast", "House Blend", "Decaf Coffee", "Cold Brew Blend"),
           ("340 g", "500 g", "750 g", "1 kg", "2 kg")),
    _Range("Coffee & Tea", "Tea", "Morning Hill", 499,
           ("Earl Grey", "Green Tea", "Chamomile", "Peppermint", "Rooibos"),
           ("20 bags", "40 bags", "60 bags", "80 bags", "100 bags")),
    _Range("Bakery", "Bread", "Corner Oven", 349,
           ("Sourdough", "Rye Bread", "Baguette", "Wholemeal Loaf", "Focaccia"),
           ("small", "medium", "large", "sliced", "half-baked")),
    _Range("Bakery", "Pastry", "Corner Oven", 199,
           ("Croissant", "Cinnamon Roll", "Blueberry Muffin", "Danish", "Brownie"),
           ("1 piece", "2 pieces", "4 pieces", "6 pieces", "12 pieces")),
    _Range("Dairy", "Milk", "Green Meadow", 129,
           ("Whole Milk", "Low-Fat Milk", "Oat Drink", "Buttermilk", "Chocolate Milk"),
           ("250 ml", "500 ml", "1 l", "2 l", "6 x 1 l")),
    _Range("Dairy", "Cheese", "Green Meadow", 399,
           ("Cheddar", "Gouda", "Mozzarella", "Feta", "Brie"),
           ("125 g", "200 g", "300 g", "400 g", "1 kg")),
    _Range("Produce", "Fruit", "Orchard Row", 149,
           ("Apples", "Bananas", "Oranges", "Grapes", "Blueberries"),
           ("1 piece", "250 g", "500 g", "1 kg", "2 kg")),
    _Range("Produce", "Vegetables", "Orchard Row", 119,
           ("Tomatoes", "Carrots", "Spinach", "Peppers", "Potatoes"),
           ("1 piece", "250 g", "500 g", "1 kg", "2 kg")),
    _Range("Pantry", "Pasta", "Trattoria Nove", 159,
           ("Spaghetti", "Penne", "Fusilli", "Lasagne", "Linguine"),
           ("250 g", "500 g", "1 kg", "3 kg", "5 kg")),
    _Range("Pantry", "Sauces", "Trattoria Nove", 279,
           ("Tomato Sauce", "Basil Pesto", "Arrabbiata", "Olive Paste", "Alfredo"),
           ("180 g", "350 g", "500 g", "720 g", "1 kg")),
    _Range("Beverages", "Juice", "Bright & Early", 229,
           ("Orange Juice", "Apple Juice", "Carrot Juice", "Lemonade", "Iced Tea"),
           ("250 ml", "500 ml", "1 l", "1.5 l", "3 l")),
    _Range("Beverages", "Water", "Bright & Early", 79,
           ("Still Water", "Sparkling Water", "Lime Water", "Mineral Water", "Tonic Water"),
           ("330 ml", "500 ml", "1 l", "1.5 l", "6 x 1.5 l")),
    _Range("Snacks", "Chocolate", "Little Treat", 189,
           ("Milk Chocolate", "Dark Chocolate", "Hazelnut Chocolate", "Truffles", "Nougat"),
           ("50 g", "100 g", "200 g", "300 g", "500 g")),
    _Range("Snacks", "Crisps", "Little Treat", 249,
           ("Salted Crisps", "Paprika Crisps", "Tortilla Chips", "Popcorn", "Pretzels"),
           ("40 g", "90 g", "150 g", "250 g", "500 g")),
    _Range("Household", "Cleaning", "Clear Day", 379,
           ("Dish Soap", "Glass Cleaner", "Floor Cleaner", "Laundry Powder", "Descaler"),
           ("250 ml", "500 ml", "750 ml", "1 l", "5 l")),
    _Range("Household", "Paper", "Clear Day", 299,
           ("Kitchen Roll", "Tissues", "Toilet Paper", "Napkins", "Baking Paper"),
           ("1 pack", "2 packs", "4 packs", "8 packs", "16 packs")),
    _Range("Electronics", "Audio", "Northwave", 2999,
           ("Earbuds", "Headphones", "Speaker", "Radio", "Microphone"),
           ("Mini", "Lite", "Standard", "Plus", "Pro")),
    _Range("Electronics", "Accessories", "Northwave", 899,
           ("USB-C Cable", "Charger", "Power Bank", "Phone Case", "Card Reader"),
           ("Mini", "Lite", "Standard", "Plus", "Pro")),
)  # fmt: skip


def parts() -> list[Part]:
    """The whole catalogue."""
    return [
        _part(Kind.LOCATIONS, _LOCATIONS),
        _part(Kind.PRODUCTS, [_product(number) for number in NUMBERS]),
        _part(Kind.LIST_PRICES, [_list_price(number, place) for number in NUMBERS for place in _AT_LEAST_PERCENT]),
        _part(Kind.SIGNALS, list(_signals())),
        _part(Kind.POLICIES, POLICIES),
        _part(Kind.PROMOTIONS, PROMOTIONS),
    ]


def _part(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> Part:
    return Part(kind, kind.replace("_", " "), len(rows), lambda: enumerate(rows, start=1))


def _range(number: int) -> tuple[_Range, int, int, int]:
    """A product's range, and which kind and size of it, organic (1) or not."""
    which, nth = divmod(number - NUMBERS.start, 50)
    return _RANGES[which], nth % 5, nth // 5 % 5, nth // 25


def _product(number: int) -> dict[str, Any]:
    range_, kind, size, organic = _range(number)
    name = f"{'Organic ' if organic else ''}{range_.kinds[kind]}, {range_.sizes[size]}"
    scope = {"department": range_.department, "category": range_.category}
    return {"product_id": f"P-{number}", "name": name, **scope, "brand": range_.brand, "size": range_.sizes[size]}


def _listed(number: int, place: str) -> int:
    """The list price in cents: dearer by kind, size and being organic; it ends in 9 everywhere."""
    range_, kind, size, organic = _range(number)
    at_new_york = range_.cents * (100 + 7 * kind + 45 * size + 30 * organic) // 100
    return at_new_york * _AT_LEAST_PERCENT[place] // 1000 * 10 + 9


def _list_price(number: int, place: str) -> dict[str, Any]:
    return {"product_id": f"P-{number}", "location": place, "amount": to_decimal(_listed(number, place), 2)}


def _signals() -> Iterator[dict[str, Any]]:
    """Costs of four products in five, competitors' prices of two in three, demand and stock of every other."""
    for number in NUMBERS:
        for place in _AT_LEAST_PERCENT:
            listed = _listed(number, place)
            row: dict[str, Any] = {"product_id": f"P-{number}", "location": place}
            if number % 5 != 4:
                row["cost"] = to_decimal(listed * (58 + number % 13) // 100, 2)
            if number % 3 != 2:
                row["competitor_price"] = to_decimal(listed * (97 + number % 7) // 100, 2)
            if number % 2 == 0:
                row["demand_index"] = to_decimal(80 + number * 7 % 70, 2)
                row["stock"] = str(number * 37 % 500)
            if len(row) > 2:
                yield row


_ENDS_IN_99 = {"rounding_increment": "1.00", "rounding_ending": "0.99"}

POLICIES: Sequence[Mapping[str, Any]] = (
    {"policy_id": "coffee-competitive", "name": "5 % below the competitor", "category": "Coffee", "currency": "USD",
     "kind": "competitor", "rate_percent": "5", "min_margin_percent": "10", "max_change_percent": "15", **_ENDS_IN_99,
     "tiers": [{"min_quantity": 6, "percent": "3"}, {"min_quantity": 12, "percent": "6"}]},
    {"policy_id": "tea-list", "name": "Tea at list price", "category": "Tea", "kind": "list",
     "tiers": [{"min_quantity": 10, "percent": "5"}]},
    {"policy_id": "bakery-markdown", "name": "Bakery surplus", "department": "Bakery", "currency": "USD",
     "kind": "markdown", "rate_percent": "30", "stock_threshold": 250, "floor": "0.99"},
    {"policy_id": "dairy-cost-plus", "name": "Dairy at cost plus 45 %", "department": "Dairy", "currency": "USD",
     "kind": "cost_plus", "rate_percent": "45", "floor": "1.29", "ceiling": "24.99"},
    {"policy_id": "produce-market", "name": "Produce follows demand", "department": "Produce", "currency": "USD",
     "kind": "market", "rate_percent": "50", "max_change_percent": "12", "rounding_increment": "0.10",
     "rounding_ending": "0.09"},
    {"policy_id": "beverages-by-the-line", "name": "Beverages by the case", "department": "Beverages",
     "kind": "market", "rate_percent": "10", "rounding_scope": "line",
     "tiers": [{"min_quantity": 6, "percent": "4.5"}, {"min_quantity": 24, "percent": "9.25"}]},
    {"policy_id": "snacks-at-la", "name": "Snacks in Los Angeles", "department": "Snacks", "location": "LA",
     "kind": "cost_plus", "rate_percent": "60", "min_margin_percent": "30", **_ENDS_IN_99},
    {"policy_id": "earbuds-match", "name": "Earbuds a dollar below", "product_id": "P-900", "currency": "USD",
     "kind": "competitor", "undercut_amount": "1.00", "min_margin_percent": "15", "floor": "19.99"},
)  # fmt: skip

_LONG = {"starts_at": "2024-01-01T00:00:00Z", "ends_at": "2036-01-01T00:00:00Z"}
_UPCOMING = {"starts_at": "2032-11-26T05:00:00Z", "ends_at": "2032-11-30T05:00:00Z"}

PROMOTIONS: Sequence[Mapping[str, Any]] = (
    {"promotion_id": "coffee-lovers", "name": "Coffee lovers", "category": "Coffee", "kind": "percent",
     "value": "10", "priority": 10, **_LONG},
    {"promotion_id": "members-coffee-and-tea", "name": "Members save 5 %", "department": "Coffee & Tea",
     "kind": "percent", "value": "5", "segment": "member", "priority": 20},
    {"promotion_id": "new-york-coffee", "name": "New York coffee days", "category": "Coffee", "location": "NY",
     "kind": "percent", "value": "12", "stackable": False, **_LONG},
    {"promotion_id": "black-friday-2032", "name": "Black Friday 2032", "department": "Coffee & Tea",
     "kind": "percent", "value": "40", "stackable": False, **_UPCOMING},
    {"promotion_id": "bread-at-2-49", "name": "Bread for members", "category": "Bread", "currency": "USD",
     "kind": "fixed", "value": "2.49", "segment": "member", "stackable": False},
    {"promotion_id": "fifty-cents-off-cheese", "name": "50 cents off cheese", "category": "Cheese",
     "currency": "USD", "kind": "amount", "value": "0.50", "priority": 10},
    {"promotion_id": "miami-opening", "name": "Miami opening", "location": "MIA", "kind": "percent",
     "value": "5", "priority": 90, "ends_at": "2036-01-01T00:00:00Z"},
    {"promotion_id": "members-snacks", "name": "Snack club", "department": "Snacks", "kind": "percent",
     "value": "15", "segment": "member", "stackable": False, **_LONG},
    {"promotion_id": "la-chocolate", "name": "Chocolate at 1.50", "product_id": "P-700", "location": "LA",
     "kind": "fixed", "value": "1.50"},
    {"promotion_id": "audio-two-dollars", "name": "2 dollars off audio", "category": "Audio", "location": "NY",
     "kind": "amount", "value": "2.00", "stackable": False},
)  # fmt: skip
