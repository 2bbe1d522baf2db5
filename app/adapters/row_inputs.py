"""The formula's inputs of many rows, and what is stored of their sheets.

A planner that sees many keys would rather read whole tables. So scattered rows are looked up one by one, and
neighbours are read as one range of each table and put together here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.adapters.database import read_columns, run
from app.adapters.row_scans import rows_between
from app.domain.columns import ABSENT, PRICE_INPUTS, ROW_KEYS, Column, RowKey, Table, packed
from app.domain.rows import RowScope, StoredInputs

OF_THESE = """
    SELECT k.product_key, coalesce(p.category_key, -1), coalesce(p.department_key, -1), k.location_key,
           l.currency_number, lp.amount, coalesce(s.cost, -1), coalesce(s.competitor_price, -1),
           coalesce(s.demand_bp, -1), coalesce(s.stock, -1), coalesce(ps.version, 0), coalesce(ps.digest, 0)
    FROM unnest(%(products)s::int4[], %(locations)s::int4[]) AS k (product_key, location_key)
    CROSS JOIN LATERAL (
        SELECT amount FROM list_prices WHERE (product_key, location_key) = (k.product_key, k.location_key) OFFSET 0
    ) lp
    CROSS JOIN LATERAL (
        SELECT category_key, department_key FROM products WHERE product_key = k.product_key OFFSET 0
    ) p
    JOIN locations l USING (location_key)
    LEFT JOIN LATERAL (
        SELECT cost, competitor_price, demand_bp, stock FROM signals
        WHERE (product_key, location_key) = (k.product_key, k.location_key) OFFSET 0
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT version, digest FROM price_sheets
        WHERE (product_key, location_key) = (k.product_key, k.location_key) OFFSET 0
    ) ps ON true
"""

_LOCK_THESE = """
    SELECT FROM unnest(%(products)s::int4[], %(locations)s::int4[]) AS k (product_key, location_key)
    CROSS JOIN LATERAL (
        SELECT FROM list_prices WHERE (product_key, location_key) = (k.product_key, k.location_key) FOR NO KEY UPDATE
    ) lp
"""

_IN_RANGE = (
    "(product_key, location_key) >= (%(first_product)s, %(first_location)s)"
    " AND (product_key, location_key) <= (%(last_product)s, %(last_location)s) ORDER BY product_key, location_key"
)


def _columns(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names])


STORED = np.dtype([*PRICE_INPUTS.descr, ("version", np.int64), ("digest", np.int64)])
_LISTED = _columns("product_key", "location_key", "list_price")
_SHEETS = _columns("product_key", "location_key", "version", "digest")
_SIGNALS = _columns("product_key", "location_key", "cost", "competitor_price", "demand_bp", "stock")
_PRODUCTS = _columns("product_key", "category_key", "department_key")
_LOCATIONS = _columns("location_key", "currency_number")


def lock(connection: sa.Connection, keys: Table) -> None:
    """Hold these rows' list prices (dtype `ROW_KEYS`), in key order, until the transaction ends."""
    run(connection, _LOCK_THESE, key_parameters(np.sort(keys)))


def inputs_between(
    connection: sa.Connection, after: RowKey, until: RowKey, limit: int, scopes: Sequence[RowScope], hold: bool
) -> StoredInputs:
    """The first `limit` rows of any scope with after < key <= until, in key order; with `hold`, their list prices are
    held before anything else is read."""
    condition, parameters = rows_between(after, until, scopes)
    listed = read_columns(
        connection,
        f"SELECT lp.product_key::int8, lp.location_key::int8, lp.amount FROM list_prices lp WHERE {condition}"
        f" ORDER BY lp.product_key, lp.location_key LIMIT %(limit)s {'FOR NO KEY UPDATE' if hold else ''}",
        parameters | {"limit": limit},
        _LISTED,
    )
    if RowScope() in scopes and len(listed):
        return split(_neighbours(connection, listed))
    keys = np.empty(len(listed), ROW_KEYS)
    keys["product_key"], keys["location_key"] = listed["product_key"], listed["location_key"]
    in_order = f"{OF_THESE} ORDER BY k.product_key, k.location_key"  # the join with locations may shuffle them
    return split(read_columns(connection, in_order, key_parameters(keys), STORED))


def _neighbours(connection: sa.Connection, listed: Table) -> Table:
    """All that is known of the rows `listed`, which are all that there are from the first to the last."""
    first, last = listed[0], listed[-1]
    bounds = {
        "first_product": int(first["product_key"]),
        "first_location": int(first["location_key"]),
        "last_product": int(last["product_key"]),
        "last_location": int(last["location_key"]),
    }

    def read(select: str, dtype: np.dtype[Any]) -> Table:
        return read_columns(connection, select, bounds, dtype)

    rows = np.full(len(listed), ABSENT, STORED)
    for field in _LISTED.names or ():
        rows[field] = listed[field]
    rows["version"] = rows["digest"] = 0
    products = read(
        "SELECT product_key::int8, coalesce(category_key, -1)::int8, coalesce(department_key, -1)::int8 FROM products"
        " WHERE product_key BETWEEN %(first_product)s AND %(last_product)s ORDER BY product_key",
        _PRODUCTS,
    )
    locations = read("SELECT location_key::int8, currency_number::int8 FROM locations ORDER BY 1", _LOCATIONS)
    signals = read(
        "SELECT product_key::int8, location_key::int8, coalesce(cost, -1), coalesce(competitor_price, -1),"
        f" coalesce(demand_bp, -1), coalesce(stock, -1) FROM signals WHERE {_IN_RANGE}",
        _SIGNALS,
    )
    sheets = read(
        f"SELECT product_key::int8, location_key::int8, version, digest FROM price_sheets WHERE {_IN_RANGE}", _SHEETS
    )
    _bring(rows, products, rows["product_key"], products["product_key"])
    _bring(rows, locations, rows["location_key"], locations["location_key"])
    for table in (signals, sheets):
        _bring(rows, table, packed(rows), packed(table))
    return rows


def _bring(rows: Table, table: Table, wanted: Column, keys: Column) -> None:
    """Into `rows` the fields of those records of `table` whose `keys`, which ascend, are `wanted`."""
    if not len(table):
        return
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    for field in table.dtype.names or ():
        np.copyto(rows[field], table[field][at], where=found)


def split(stored: Table) -> StoredInputs:
    """What came as one table, of dtype `STORED`."""
    inputs = np.empty(len(stored), PRICE_INPUTS)
    for name in PRICE_INPUTS.names or ():
        inputs[name] = stored[name]
    return StoredInputs(inputs, stored["version"], stored["digest"])


def key_parameters(keys: Table) -> dict[str, Any]:
    return {"products": keys["product_key"], "locations": keys["location_key"]}
