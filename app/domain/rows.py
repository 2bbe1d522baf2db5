"""What the store and the use cases tell each other about rows; a row is a product at a location."""

from datetime import datetime
from typing import NamedTuple

from app.domain.columns import Column, Rules, Table
from app.domain.money import Currency
from app.domain.sheet import Labels
from app.errors import InvalidInput

LIST_PRICE = "list_price"
"""The one signal that every priced row has."""


class RowScope(NamedTuple):
    """A set of rows by keys; None everywhere is every row."""

    product_key: int | None = None
    category_key: int | None = None
    department_key: int | None = None
    location_key: int | None = None
    currency: str | None = None


class Subjects(NamedTuple):
    """The keys of what events name; of locations with their currency. Unknown names are missing."""

    products: dict[str, int]
    categories: dict[str, int]
    locations: dict[str, tuple[int, Currency]]

    def scope(self, subject: str, location: str, currency: str | None = None) -> RowScope:
        """The rows that an event's subject and location mean. A name that is both a product's id and a category
        is the product. Raises `InvalidInput` where one of them is unknown."""
        product_key = self.products.get(subject)
        category_key = self.categories.get(subject) if product_key is None else None
        location_key, _ = self.locations.get(location, (None, None))
        if (subject != "*" and product_key is None and category_key is None) or (
            location != "*" and location_key is None
        ):
            raise InvalidInput(f"there is no {subject!r} at {location!r}")
        return RowScope(product_key, category_key, None, location_key, currency)


class SignalChange(NamedTuple):
    """What an event sets of many rows: a signal, or `LIST_PRICE`, to a value (minor units, basis points or a
    quantity), at a position that is the event's place in the stream."""

    signal: str
    value: int
    position: int


class StoredInputs(NamedTuple):
    """A batch's inputs, and the version and digest (0 where there is none yet) of its stored sheets."""

    inputs: Table
    versions: Column
    digests: Column


class ToPrice(NamedTuple):
    """All that it takes to price some rows at the instant `as_of` (ms since 1970)."""

    stored: StoredInputs
    rules: Rules
    labels: Labels
    as_of: int


class StoredSheet(NamedTuple):
    """What is stored of one row. `product_key` and `location_key` are None where the name is unknown,
    `listed` says whether it has a list price, `sheet` is a `PriceSheet` as JSON, or None if not computed yet;
    it holds until `valid_until` (ms since 1970; None: no end is known)."""

    product_key: int | None
    location_key: int | None
    listed: bool
    version: int
    valid_until: int | None
    sheet: bytes | None


class HistoryEntry(NamedTuple):
    """One version, with prices in minor units, and from when to when (None: still) it was in force."""

    version: int
    computed_at: datetime
    until: datetime | None
    list_price: int
    base_price: int
    everyone_price: int
    member_price: int
    cause: str
    sheet: bytes
