"""A row's values as `catalog_staging` stages them: amounts in minor units, rates in basis points."""

from collections.abc import Mapping
from typing import Any

from app.adapters.catalog_staging import LAYOUTS
from app.adapters.rule_rows import promotion_row
from app.catalog.rows import ListPriceRow, LocationRow, ProductRow, Row, SignalsRow
from app.domain.money import SCALE, Currency, currency, to_minor
from app.domain.rules import Promotion
from app.errors import InvalidInput


def staged(row: Row, currencies: Mapping[str, Currency]) -> tuple[Any, ...]:
    """The values in the order of the kind's columns, given the currency of each known location. Raises
    `InvalidInput` for an unknown location and for an amount finer than the currency."""
    match row:
        case ProductRow():
            return row.product_id, row.name, row.department, row.category, row.brand, row.size
        case LocationRow():
            here = currency(row.currency)
            if (known := currencies.get(row.location, here)) != here:
                raise InvalidInput(f"currency: it is {known.code}, and the prices there depend on it")
            return row.location, row.name, here.code, here.number, row.time_zone
        case ListPriceRow():
            here = _currency_at(row.location, currencies)
            return row.product_id, row.location, to_minor(row.amount, here.decimals)
        case SignalsRow():
            decimals = _currency_at(row.location, currencies).decimals
            amounts = (None if a is None else to_minor(a, decimals) for a in (row.cost, row.competitor_price))
            demand_bp = None if row.demand_index is None else int(row.demand_index * SCALE)
            return row.product_id, row.location, *amounts, demand_bp, row.stock
        case Promotion():
            code = _currency_at(row.location, currencies).code if row.location else row.currency
            values = row.model_dump() | promotion_row(row, {"currency": code})
            return tuple(values[column] for column in LAYOUTS["promotions"].types)
    raise AssertionError(f"{type(row).__name__} is not staged")


def _currency_at(location: str, currencies: Mapping[str, Currency]) -> Currency:
    if location not in currencies:
        raise InvalidInput(f"location: there is no location {location!r}")
    return currencies[location]
