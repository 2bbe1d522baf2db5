"""What one row of a catalogue says, by kind: the models that every source is checked against."""

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.domain.money import currency
from app.domain.rules import CurrencyCode, Id, Money, Name, Policy, Promotion
from app.errors import InvalidInput


class Kind(StrEnum):
    """In the order in which they build on each other."""

    LOCATIONS = "locations"
    PRODUCTS = "products"
    LIST_PRICES = "list_prices"
    SIGNALS = "signals"
    POLICIES = "policies"
    PROMOTIONS = "promotions"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError):  # what it raises for a name that is none, that is a folder, or that leaves it
        raise ValueError(f"{name!r} is not an IANA time zone") from None
    return name


class LocationRow(_Row):
    location: Id
    name: Name
    currency: Annotated[CurrencyCode, AfterValidator(lambda code: currency(code).code)]
    time_zone: Annotated[str, AfterValidator(_known_zone)]


class ProductRow(_Row):
    product_id: Id
    name: Name
    department: Name | None = None
    category: Name | None = None
    brand: Name | None = None
    size: Name | None = None


class ListPriceRow(_Row):
    product_id: Id
    location: Id
    amount: Money


class SignalsRow(_Row):
    """What is known of a product at a location; what is absent stays as it is."""

    product_id: Id
    location: Id
    cost: Money | None = None
    competitor_price: Money | None = None
    demand_index: Annotated[Decimal, Field(ge=0, le=10, decimal_places=4, allow_inf_nan=False)] | None = None
    stock: Annotated[int, Field(ge=0, le=10**12)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.model_fields_set <= {"product_id", "location"}:
            raise ValueError("names no signal")
        return self


Row = LocationRow | ProductRow | ListPriceRow | SignalsRow | Policy | Promotion

MODELS: Mapping[Kind, type[Row]] = {
    Kind.LOCATIONS: LocationRow,
    Kind.PRODUCTS: ProductRow,
    Kind.LIST_PRICES: ListPriceRow,
    Kind.SIGNALS: SignalsRow,
    Kind.POLICIES: Policy,
    Kind.PROMOTIONS: Promotion,
}

decode_exactly = msgspec.json.Decoder(float_hook=Decimal).decode
"""JSON in which a number with a fraction becomes a `Decimal`, digit by digit, and never a float."""


def check_columns(file: str, kind: Kind, columns: list[str]) -> None:
    """Raises `InvalidInput` where the columns of a whole file are not those of its kind. An unknown one is
    refused: a misspelt `ends_at` would otherwise make a promotion that never ends."""
    fields = MODELS[kind].model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in columns]
    unknown = [name for name in columns if name not in fields]
    if missing or unknown or len(set(columns)) != len(columns):
        problem = f"lack {', '.join(missing)}" if missing else f"hold {', '.join(unknown) or 'one name twice'}"
        raise InvalidInput(f"{file}: the columns {problem}; those of {kind} are {', '.join(fields)}")


def parse(kind: Kind, values: Mapping[str, Any]) -> Row:
    """The row that these values say; an empty value is an absent one. Raises `InvalidInput` with every field
    that is wrong."""
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    for name in ("product_id", "location"):
        if type(given.get(name)) is int:  # files often keep ids as numbers
            given[name] = str(given[name])
    try:
        if isinstance(tiers := given.get("tiers"), str):
            given["tiers"] = decode_exactly(tiers)
        return MODELS[kind].model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidInput("; ".join(f"{_place(p['loc'])}{p['msg']}" for p in problems)) from None
    except msgspec.DecodeError as error:
        raise InvalidInput(f"tiers: {error}") from None


def _place(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""
