"""Price sheets and their history: what a repricing reads and writes inside one transaction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.adapters.database import read_columns, write_rows
from app.adapters.row_scans import rows_between
from app.domain.columns import NEVER, PRICE_INPUTS, ROW_KEYS, Column, RowKey, Table
from app.domain.money import currency, unscale
from app.domain.quote import instant
from app.domain.rows import RowScope, StoredInputs
from app.domain.sheet import Label, Labels, PriceSheet, decode_sheet, encode_sheet

_STORED = np.dtype([*PRICE_INPUTS.descr, ("version", np.int64), ("digest", np.int64)])

_INPUTS = """
    SELECT lp.product_key::int8, coalesce(p.category_key, -1)::int8, coalesce(p.department_key, -1)::int8,
           lp.location_key::int8, l.currency_number::int8, lp.amount, coalesce(s.cost, -1),
           coalesce(s.competitor_price, -1), coalesce(s.demand_bp, -1), coalesce(s.stock, -1),
           coalesce(ps.version, 0), coalesce(ps.digest, 0)
    FROM list_prices lp
    JOIN products p USING (product_key)
    JOIN locations l USING (location_key)
    LEFT JOIN signals s USING (product_key, location_key)
    LEFT JOIN price_sheets ps USING (product_key, location_key)
"""

_THESE = (
    "JOIN unnest(%(products)s::int4[], %(locations)s::int4[]) AS k (product_key, location_key)"
    " USING (product_key, location_key)"
)


class PriceTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def lock(self, keys: Table) -> None:
        """Hold these rows until the transaction ends. Whoever reprices a row holds its list price, and reads
        its inputs only then: the last one to hold it has seen everything that was committed before."""
        self._connection.execute(
            sa.text(
                "SELECT FROM list_prices JOIN unnest(CAST(:products AS int4[]), CAST(:locations AS int4[]))"
                " AS k (product_key, location_key) USING (product_key, location_key)"
                " ORDER BY product_key, location_key FOR NO KEY UPDATE OF list_prices"
            ),
            _key_parameters(keys),
        )

    def inputs(self, keys: Table) -> StoredInputs:
        """Those of `keys` (dtype `ROW_KEYS`) that have a list price."""
        return self._read(f"{_INPUTS} {_THESE}", _key_parameters(keys))

    def inputs_between(self, after: RowKey, until: RowKey, limit: int, scopes: Sequence[RowScope]) -> StoredInputs:
        """The first `limit` rows of any scope with after < key <= until, in key order."""
        condition, parameters = rows_between(after, until, scopes)
        return self._read(
            f"{_INPUTS} WHERE {condition} ORDER BY lp.product_key, lp.location_key LIMIT %(limit)s",
            parameters | {"limit": limit},
        )

    def current(self, keys: Table) -> list[PriceSheet]:
        """The stored sheets of those of `keys` that have one, in no particular order."""
        rows = self._connection.execute(
            sa.text(
                "SELECT h.sheet FROM unnest(CAST(:products AS int4[]), CAST(:locations AS int4[]))"
                " AS k (product_key, location_key) JOIN price_sheets USING (product_key, location_key)"
                " JOIN price_history h USING (product_key, location_key, version)"
            ),
            _key_parameters(keys),
        )
        return [decode_sheet(sheet) for sheet in rows.scalars()]

    def _read(self, select: str, parameters: dict[str, Any]) -> StoredInputs:
        stored = read_columns(self._connection, select, parameters, _STORED)
        inputs = np.empty(len(stored), PRICE_INPUTS)
        for name in PRICE_INPUTS.names or ():
            inputs[name] = stored[name]
        return StoredInputs(inputs, stored["version"], stored["digest"])

    def due(self, as_of: int, limit: int) -> Table:
        """Keys of sheets that no longer hold at `as_of` (ms), the longest overdue first."""
        return read_columns(
            self._connection,
            "SELECT product_key::int8, location_key::int8 FROM price_sheets"
            " WHERE valid_until <= to_timestamp(%(as_of)s / 1000.0) ORDER BY valid_until LIMIT %(limit)s",
            {"as_of": as_of, "limit": limit},
            ROW_KEYS,
        )

    def next_boundary_s(self) -> float | None:
        """How many seconds from now, by the database's clock, the next sheet's time is over; not positive where one's
        is already, None where there is none."""
        select = sa.text("SELECT extract(epoch FROM min(valid_until) - clock_timestamp())::float8 FROM price_sheets")
        seconds: float | None = self._connection.execute(select).scalar_one()
        return seconds

    def labels(self, products: Column, policies: Column, promotions: Column) -> Labels:
        """The public names of these keys, and of all locations."""
        locations = self._connection.execute(sa.text("SELECT location_key, location, currency FROM locations"))
        return Labels(
            products=dict(self._named("SELECT product_key, product_id FROM products WHERE product_key", products)),
            locations={key: (location, currency(code)) for key, location, code in locations},
            policies=self._labelled("SELECT policy_key, policy_id, name FROM policies WHERE policy_key", policies),
            promotions=self._labelled(
                "SELECT promotion_key, promotion_id, name FROM promotions WHERE promotion_key", promotions
            ),
        )

    def _named(self, select: str, keys: Column) -> Sequence[Any]:
        if not len(keys):
            return []
        return self._connection.execute(sa.text(f"{select} = ANY(:keys)"), {"keys": np.unique(keys)}).all()

    def _labelled(self, select: str, keys: Column) -> dict[int, Label]:
        return {key: Label(id_, name) for key, id_, name in self._named(select, keys)}

    def store(self, keys: Table, digests: Column, sheets: Sequence[PriceSheet], causes: Sequence[str]) -> None:
        """Make these the current sheets, and history. The rows are locked; all four run along."""
        self._connection.execute(
            sa.text(
                "INSERT INTO price_sheets (product_key, location_key, version, digest, valid_until)"
                " SELECT product_key, location_key, version, digest, to_timestamp(nullif(ms, :never) / 1000.0)"
                " FROM unnest(CAST(:products AS int4[]), CAST(:locations AS int4[]), CAST(:versions AS int8[]),"
                "   CAST(:digests AS int8[]), CAST(:valid_until AS int8[]))"
                "   AS n (product_key, location_key, version, digest, ms)"
                " ON CONFLICT (product_key, location_key) DO UPDATE"
                " SET version = excluded.version, digest = excluded.digest, valid_until = excluded.valid_until"
            ),
            _key_parameters(keys)
            | {
                "versions": np.array([sheet.version for sheet in sheets], np.int64),
                "digests": digests,
                "valid_until": np.array([sheet.valid_until or NEVER for sheet in sheets], np.int64),
                "never": NEVER,
            },
        )
        write_rows(
            self._connection,
            "price_history",
            {
                "product_key": "int4", "location_key": "int4", "version": "int8", "computed_at": "timestamptz",
                "list_price": "int8", "base_price": "int8", "everyone_price": "int8", "member_price": "int8",
                "cause": "text", "sheet": "bytea",
            },
            list(map(_history_row, keys.tolist(), sheets, causes)),
        )  # fmt: skip


def _history_row(key: tuple[int, int], sheet: PriceSheet, cause: str) -> tuple[Any, ...]:
    return (
        *key,
        sheet.version,
        instant(sheet.computed_at),
        unscale(sheet.list_price),
        unscale(sheet.base_price),
        unscale(sheet.everyone.tiers[0].final),
        unscale(sheet.member.tiers[0].final),
        cause,
        encode_sheet(sheet),
    )


def _key_parameters(keys: Table) -> dict[str, Any]:
    return {"products": keys["product_key"], "locations": keys["location_key"]}
