"""Going over the rows of wide scopes, in key order and in batches, and setting one signal of many of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.adapters.catalog_tables import signal_columns
from app.adapters.database import read_columns
from app.domain.columns import ROW_KEYS, RowKey, Table
from app.domain.money import Currency, currency
from app.domain.rows import RowScope, SignalChange

_IN_SCOPE = {
    "product_key": "lp.product_key = {}",
    "category_key": "lp.product_key IN (SELECT product_key FROM products WHERE category_key = {})",
    "department_key": "lp.product_key IN (SELECT product_key FROM products WHERE department_key = {})",
    "location_key": "lp.location_key = {}",
    "currency": "lp.location_key IN (SELECT location_key FROM locations WHERE currency = {})",
}

_NUMBERED = np.dtype([*ROW_KEYS.descr, ("n", np.int64)])


def rows_between(after: RowKey, until: RowKey, scopes: Sequence[RowScope]) -> tuple[str, dict[str, Any]]:
    """A condition over list_prices `lp` alone for the rows of any of these scopes with after < key <= until, and
    its COPY parameters."""
    condition, parameters = rows_in(scopes)
    bounds = {"after_product": after[0], "after_location": after[1]}
    bounds |= {"until_product": until[0], "until_location": until[1]}
    return (
        "(lp.product_key, lp.location_key) > (%(after_product)s, %(after_location)s)"
        f" AND (lp.product_key, lp.location_key) <= (%(until_product)s, %(until_location)s) AND {condition}",
        parameters | bounds,
    )


def rows_in(scopes: Sequence[RowScope]) -> tuple[str, dict[str, Any]]:
    """As `rows_between`, over all keys."""
    parameters: dict[str, Any] = {}
    alternatives = []
    for n, scope in enumerate(scopes):
        restricted = {field: value for field, value in scope._asdict().items() if value is not None}
        if not restricted:
            return "true", {}
        parameters |= {f"{field}_{n}": value for field, value in restricted.items()}
        alternatives.append(" AND ".join(_IN_SCOPE[field].format(f"%({field}_{n})s") for field in restricted))
    return f"({' OR '.join(alternatives) or 'false'})", parameters


class RowScans:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def keys(self, after: RowKey, until: RowKey, limit: int, scopes: Sequence[RowScope]) -> Table:
        """Keys (dtype `ROW_KEYS`, ascending) of the first `limit` rows of any scope with after < key <= until."""
        condition, parameters = rows_between(after, until, scopes)
        return read_columns(
            self._connection,
            f"SELECT lp.product_key::int8, lp.location_key::int8 FROM list_prices lp WHERE {condition}"
            " ORDER BY lp.product_key, lp.location_key LIMIT %(limit)s",
            parameters | {"limit": limit},
            ROW_KEYS,
        )

    def every_nth(self, nth: int, scopes: Sequence[RowScope]) -> tuple[Table, int]:
        """The keys (dtype `ROW_KEYS`, ascending) of every nth row of any scope, and how many rows there are: one
        pass in key order, of which PostgreSQL keeps nothing."""
        condition, parameters = rows_in(scopes)
        found = read_columns(
            self._connection,
            "SELECT product_key::int8, location_key::int8, n FROM (SELECT lp.product_key, lp.location_key,"
            " row_number() OVER in_order AS n, lead(true) OVER in_order IS NULL AS is_last"
            f" FROM list_prices lp WHERE {condition}"
            " WINDOW in_order AS (ORDER BY lp.product_key, lp.location_key)) numbered"
            " WHERE is_last OR n %% %(nth)s = 0 ORDER BY n",
            parameters | {"nth": nth},
            _NUMBERED,
        )
        keys = np.empty(len(found), ROW_KEYS)
        keys["product_key"], keys["location_key"] = found["product_key"], found["location_key"]
        return keys[found["n"] % nth == 0], int(found["n"][-1]) if len(found) else 0

    def holders(self) -> set[str]:
        """The transactions, by their virtual ids, that hold rows in order to reprice them."""
        locks = (
            "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowShareLock' AND granted"
            " AND relation = 'list_prices'::regclass"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return set(self._connection.execute(sa.text(locks)).scalars())

    def currencies(self, scope: RowScope) -> set[Currency]:
        """The currencies in which the rows of a scope are priced."""
        condition, parameters = rows_in([scope])
        statement = (
            "SELECT DISTINCT l.currency FROM locations l WHERE EXISTS"
            f" (SELECT FROM list_prices lp WHERE lp.location_key = l.location_key AND {condition})"
        )
        text = sa.text(statement.replace("%(", ":").replace(")s", ""))
        return {currency(code) for code in self._connection.execute(text, parameters).scalars()}

    def set_signal(self, change: SignalChange, keys: Table) -> None:
        """Set one signal, or the list price, of all these rows, which are locked. What was set at a later
        position stays."""
        table, value, position = signal_columns(change.signal)
        self._connection.execute(
            sa.text(
                f"INSERT INTO {table} AS t (product_key, location_key, {value}, {position})"
                " SELECT product_key, location_key, CAST(:value AS int8), CAST(:position AS int8)"
                " FROM unnest(CAST(:products AS int4[]), CAST(:locations AS int4[])) AS k (product_key, location_key)"
                f" ON CONFLICT (product_key, location_key) DO UPDATE SET {value} = excluded.{value},"
                f" {position} = excluded.{position} WHERE coalesce(t.{position}, 0) <= excluded.{position}"
            ),
            {
                "products": keys["product_key"],
                "locations": keys["location_key"],
                "value": change.value,
                "position": change.position,
            },
        )
