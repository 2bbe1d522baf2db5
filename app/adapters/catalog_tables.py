"""Products, locations, list prices and signals; and which rows an event or a rule is about."""

from collections.abc import Callable, Collection, Sequence

import sqlalchemy as sa

from app.adapters.database import read_columns, run
from app.adapters.schema import SIGNALS
from app.domain.columns import ROW_KEYS, Table
from app.domain.money import Currency, currency
from app.domain.rows import LIST_PRICE, RowScope, Subjects


def condition(scope: RowScope) -> str:
    """A condition over list_prices `lp`, products `p` and locations `l`, with the scope's fields as COPY
    parameters. Only fields that are set appear, so that the planner sees which index serves it."""
    columns = {
        "product_key": "lp.product_key",
        "category_key": "p.category_key",
        "department_key": "p.department_key",
        "location_key": "lp.location_key",
        "currency": "l.currency",
    }
    parts = [f"{columns[field]} = %({field})s" for field, value in scope._asdict().items() if value is not None]
    return " AND ".join(parts) or "true"


def signal_columns(signal: str) -> tuple[str, str, str]:
    """Where a signal, or `LIST_PRICE`, is stored: the table, its column, and that of its position."""
    assert signal == LIST_PRICE or signal in SIGNALS
    return ("list_prices", "amount", "position") if signal == LIST_PRICE else ("signals", signal, f"{signal}_position")


class CatalogTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def subjects(self, subjects: Collection[str], locations: Collection[str]) -> Subjects:
        """The keys of these products or categories, and of these locations, in one query."""
        return self.ask_subjects(subjects, locations)()

    def ask_subjects(self, subjects: Collection[str], locations: Collection[str]) -> Callable[[], Subjects]:
        """As `subjects`: call what it gives for them, when they are needed."""
        rows = run(
            self._connection,
            "SELECT 'products', product_id, product_key, NULL FROM products WHERE product_id = ANY(%(subjects)s)"
            " UNION ALL SELECT 'categories', name, category_key, NULL FROM categories WHERE name = ANY(%(subjects)s)"
            " UNION ALL SELECT 'locations', location, location_key, currency FROM locations"
            " WHERE location = ANY(%(locations)s)",
            {"subjects": list(subjects), "locations": list(locations)},
        )

        def found() -> Subjects:
            found = Subjects({}, {}, {})
            for kind, name, key, code in rows:
                if kind == "locations":
                    found.locations[name] = key, currency(code)
                else:
                    (found.products if kind == "products" else found.categories)[name] = key
            return found

        return found

    def currencies(self) -> dict[int, Currency]:
        """Each location's currency, by location key."""
        rows = self._connection.execute(sa.text("SELECT location_key, currency FROM locations"))
        return {key: currency(code) for key, code in rows}

    def currencies_by_name(self) -> dict[str, Currency]:
        """Each location's currency, by location."""
        rows = self._connection.execute(sa.text("SELECT location, currency FROM locations"))
        return {location: currency(code) for location, code in rows}

    def has_products(self) -> bool:
        return bool(self._connection.execute(sa.text("SELECT EXISTS (SELECT FROM products)")).scalar_one())

    def count(self, scope: RowScope) -> int:
        """How many rows with a list price are in scope."""
        statement = (
            "SELECT count(*) FROM list_prices lp JOIN products p USING (product_key)"
            " JOIN locations l USING (location_key) WHERE " + condition(scope).replace("%(", ":").replace(")s", "")
        )
        return int(self._connection.execute(sa.text(statement), scope._asdict()).scalar_one())

    def keys(self, scope: RowScope, limit: int) -> Table:
        """Keys (dtype `ROW_KEYS`, ascending) of at most `limit` rows in scope."""
        return read_columns(
            self._connection,
            "SELECT lp.product_key::int8, lp.location_key::int8 FROM list_prices lp"
            " JOIN products p USING (product_key) JOIN locations l USING (location_key)"
            f" WHERE {condition(scope)} ORDER BY 1, 2 LIMIT %(limit)s",
            scope._asdict() | {"limit": limit},
            ROW_KEYS,
        )

    def set_signals(self, signal: str, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """Set one signal, or `LIST_PRICE`, of rows (product_key, location_key, value, position); at most one
        per row. What was set at a later position stays."""
        table, value, position = signal_columns(signal)
        products, locations, values, positions = zip(*sorted(rows), strict=True)
        # In key order, so that two transactions that set the same rows wait instead of deadlocking.
        run(
            self._connection,
            f"INSERT INTO {table} AS t (product_key, location_key, {value}, {position})"
            " SELECT * FROM unnest(%(products)s::int4[], %(locations)s::int4[],"
            "   %(values)s::int8[], %(positions)s::int8[]) ORDER BY 1, 2"
            " ON CONFLICT (product_key, location_key) DO UPDATE"
            f" SET {value} = excluded.{value}, {position} = excluded.{position}"
            f" WHERE coalesce(t.{position}, 0) <= excluded.{position}",
            {
                "products": list(products),
                "locations": list(locations),
                "values": list(values),
                "positions": list(positions),
            },
        )
