"""Catalogue rows on their way in: COPY into a temporary table, then set-based SQL that writes what differs.

One `Staging` is for rows of one kind on one connection. `add` and `merge` are each given a transaction by
their caller, so that no lock is held for longer than one batch takes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from app.adapters.database import write_rows
from app.adapters.schema import SIGNALS


class Target(NamedTuple):
    """Columns that are written together. `position` is the column that says how new they are, if any."""

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    position: str | None = None


class Layout(NamedTuple):
    """How a kind is staged: its columns' types, which of them name a row, the query that turns names into
    keys, and where the result goes. `names` are the tables whose missing names come from the same column."""

    types: Mapping[str, str]
    unique: tuple[str, ...]
    resolved: str
    targets: tuple[Target, ...]
    names: Mapping[str, str] = {}


_ROW_KEY = ("product_key", "location_key")
_ROW_NAME = {"product_id": "text", "location": "text"}
_AT_LOCATION = "FROM staged s JOIN products p USING (product_id) JOIN locations l USING (location)"
_NAMES = {"departments": "department", "categories": "category"}
_DEFINITION = {
    "name": "text", "currency": "text", "kind": "int2", "value": "int8", "segment": "int2", "stackable": "bool",
    "priority": "int4", "starts_at": "timestamptz", "ends_at": "timestamptz",
}  # fmt: skip
_SCOPE_KEYS = {"product_key": "p", "category_key": "c", "department_key": "d", "location_key": "l"}

LAYOUTS = {
    "locations": Layout(
        {"location": "text", "name": "text", "currency": "text", "currency_number": "int2", "time_zone": "text"},
        ("location",),
        "SELECT * FROM staged s",
        (Target("locations", ("location",), ("name", "currency", "currency_number", "time_zone")),),
    ),
    "products": Layout(
        dict.fromkeys(("product_id", "name", "department", "category", "brand", "size"), "text"),
        ("product_id",),
        "SELECT s.*, department_key, category_key FROM staged s"
        " LEFT JOIN departments d ON d.name = s.department LEFT JOIN categories c ON c.name = s.category",
        (Target("products", ("product_id",), ("name", "department_key", "category_key", "brand", "size")),),
        _NAMES,
    ),
    "list_prices": Layout(
        _ROW_NAME | {"amount": "int8"},
        ("product_id", "location"),
        f"SELECT line, product_key, location_key, amount {_AT_LOCATION}",
        (Target("list_prices", _ROW_KEY, ("amount",), "position"),),
    ),
    "signals": Layout(
        _ROW_NAME | dict.fromkeys(SIGNALS, "int8"),
        ("product_id", "location"),
        f"SELECT line, product_key, location_key, {', '.join(SIGNALS)} {_AT_LOCATION}",
        tuple(Target("signals", _ROW_KEY, (signal,), f"{signal}_position") for signal in SIGNALS),
    ),
    "promotions": Layout(
        {"promotion_id": "text"} | _ROW_NAME | {"department": "text", "category": "text"} | _DEFINITION,
        ("promotion_id",),
        f"SELECT s.*, false AS removed, {', '.join(f'{at}.{key}' for key, at in _SCOPE_KEYS.items())} FROM staged s"
        " LEFT JOIN products p USING (product_id) LEFT JOIN locations l USING (location)"
        " LEFT JOIN departments d ON d.name = s.department LEFT JOIN categories c ON c.name = s.category",
        (Target("promotions", ("promotion_id",), (*_DEFINITION, *_SCOPE_KEYS, "removed"), "position"),),
        _NAMES,
    ),
}


class Merged(NamedTuple):
    """How many rows were added and how many got other values."""

    new: int
    changed: int


class Staging:
    """`position` is how new the rows are: what was said later than that is not overwritten."""

    def __init__(self, connection: sa.Connection, kind: str, position: int) -> None:
        self._connection, self._layout, self._position = connection, LAYOUTS[kind], position

    def open(self) -> None:
        """An empty table of this kind, in the place of the last one."""
        columns = ", ".join(f"{name} {type_}" for name, type_ in self._layout.types.items())
        self._run("DROP TABLE IF EXISTS staged")
        self._run(f"CREATE TEMPORARY TABLE staged (line int4 PRIMARY KEY, {columns})")

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows as (line, *values in the order of the layout's columns)."""
        write_rows(self._connection, "staged", {"line": "int4", **self._layout.types}, rows)

    def refuse(self) -> Iterator[tuple[int, str]]:
        """Take out the rows that cannot go in; their lines and why. Then the rest may be merged."""
        key = ", ".join(self._layout.unique)
        same = " AND ".join(f"s.{column} = d.{column}" for column in self._layout.unique)
        twice = self._run(
            f"DELETE FROM staged s USING (SELECT {key}, min(line) AS line FROM staged GROUP BY {key}"
            f" HAVING count(*) > 1) d WHERE {same} AND s.line > d.line RETURNING s.line, d.line"
        )
        yield from ((line, f"is there twice: line {first} has it already") for line, first in twice)
        if "product_id" in self._layout.types and self._layout.unique != ("product_id",):
            unknown = self._run(
                "DELETE FROM staged s WHERE product_id IS NOT NULL"
                " AND NOT EXISTS (SELECT FROM products p WHERE p.product_id = s.product_id)"
                " RETURNING line, product_id"
            )
            yield from ((line, f"product_id: there is no product {product!r}") for line, product in unknown)
        for table, column in self._layout.names.items():
            self._run(
                f"INSERT INTO {table} (name) SELECT DISTINCT {column} FROM staged s WHERE {column} IS NOT NULL"
                f" AND NOT EXISTS (SELECT FROM {table} t WHERE t.name = s.{column}) ORDER BY 1 ON CONFLICT DO NOTHING"
            )
        self._run("ANALYZE staged")

    def merge(self, after: int, up_to: int) -> Merged:
        """Bring the rows on lines `after` < line ≤ `up_to` to where they belong. A row that is there already,
        or of which something newer was said, is not touched."""
        rows: dict[tuple[Any, ...], bool] = {}
        for target in self._layout.targets:
            for *key, new in self._run(_upsert(self._layout.resolved, target), after=after, up_to=up_to):
                rows[*key] = new or rows.get(tuple(key), False)
        new_rows = sum(rows.values())
        return Merged(new_rows, len(rows) - new_rows)

    def _run(self, statement: str, **parameters: Any) -> Sequence[Any]:
        result = self._connection.execute(sa.text(statement), parameters | {"position": self._position})
        return result.all() if result.returns_rows else []


def _beside(target: Target) -> str:
    return f"LEFT JOIN {target.table} old USING ({', '.join(target.key)})"


def _differs(target: Target) -> str:
    """Whether `new` says something that `old` does not, and is the newer of the two."""
    old, new = (", ".join(f"{side}.{column}" for column in target.columns) for side in ("old", "new"))
    differs = f"({old}) IS DISTINCT FROM ({new})"
    if target.table == "signals":  # where a signal's absence says nothing
        differs += f" AND {new} IS NOT NULL"
    return f"({differs} AND {_not_newer('old', target)})"


def _not_newer(table: str, target: Target) -> str:
    return f"coalesce({table}.{target.position}, 0) <= :position" if target.position else "true"


def _upsert(resolved: str, target: Target) -> str:
    """In key order, so that two transactions that write the same rows wait instead of deadlocking. Only what
    differs is inserted at all: a conflict would use up a surrogate key. Gives the keys, and whether each is new
    (a row that was updated on conflict has the lock of that update as its xmax)."""
    key, columns = ", ".join(target.key), (*target.columns, *filter(None, [target.position]))
    values = [f"new.{column}" for column in (*target.key, *target.columns)]
    values += [":position"] if target.position else []
    return (
        f"INSERT INTO {target.table} AS old ({key}, {', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM ({resolved} WHERE line > :after AND line <= :up_to) new"
        f" {_beside(target)} WHERE {_differs(target)} ORDER BY {key}"
        f" ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in columns)}"
        f" WHERE {_not_newer('old', target)} RETURNING {', '.join(f'old.{k}' for k in target.key)}, old.xmax = 0"
    )
