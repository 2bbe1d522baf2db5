"""Price sheets and their history: what a repricing reads and writes inside one transaction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.adapters import row_inputs
from app.adapters.database import NOW_MS, read_columns, read_lists, read_together, run, write_columns
from app.adapters.rule_tables import RULE_NAMES, RULES, concerning
from app.domain.columns import NEVER, ROW_KEYS, Column, RowKey, Rules, Table
from app.domain.money import currency
from app.domain.rows import RowScope, StoredInputs, ToPrice
from app.domain.sheet import EncodedSheet, Label, Labels

_HISTORY = np.dtype(
    [("product_key", ">i4"), ("location_key", ">i4")]
    + [
        (name, ">i8")
        for name in ("version", "computed_at", "list_price", "base_price", "everyone_price", "member_price")
    ]
)

_VERSIONS = np.dtype([("version", np.int64)])
_NOW = np.dtype([("ms", np.int64)])

_EPOCH_MS = 946_684_800_000
"""PostgreSQL's timestamps are microseconds since 2000."""


_FEW = 100
"""So many versions are sent along with their sheets. COPY, which writes more of them sooner, has two waits of its own,
and takes 1 to 6 ms for one row of a large table."""

_SHEETS = ("product_key", "location_key", "version", "digest", "valid_until")
_STORE_SHEETS = """
    INSERT INTO price_sheets (product_key, location_key, version, digest, valid_until)
    SELECT product_key, location_key, version, digest, to_timestamp(nullif(ms, %(never)s) / 1000.0)
    FROM unnest(%(product_key)s::int4[], %(location_key)s::int4[], %(version)s::int8[], %(digest)s::int8[],
                %(valid_until)s::int8[]) AS n (product_key, location_key, version, digest, ms)
    ON CONFLICT (product_key, location_key) DO UPDATE
    SET version = excluded.version, digest = excluded.digest, valid_until = excluded.valid_until
"""

_STORE_FEW = f"""
    WITH stored AS ({_STORE_SHEETS})
    INSERT INTO price_history (product_key, location_key, version, computed_at, list_price, base_price, everyone_price,
                               member_price, cause, sheet)
    SELECT product_key, location_key, version, to_timestamp(ms / 1000.0), list_price, base_price, everyone_price,
           member_price, cause, sheet
    FROM unnest(%(product_key)s::int4[], %(location_key)s::int4[], %(version)s::int8[], %(computed_at)s::int8[],
                %(list_price)s::int8[], %(base_price)s::int8[], %(everyone_price)s::int8[], %(member_price)s::int8[],
                %(cause)s::text[], %(sheet)s::bytea[])
      AS n (product_key, location_key, version, ms, list_price, base_price, everyone_price, member_price, cause, sheet)
"""


def _named(table: str, *columns: str) -> tuple[str, Sequence[str]]:
    """These columns of a table, of the rows whose first one is among the parameter of the table's name."""
    return f"SELECT {', '.join(columns)} FROM {table} WHERE {columns[0]} = ANY(%({table})s::int4[])", columns


_ROW_NAMES = (
    _named("products", "product_key", "product_id"),
    _named("locations", "location_key", "location", "currency"),
)
_NAMES = (
    *_ROW_NAMES,
    _named("policies", "policy_key", "policy_id", "name"),
    _named("promotions", "promotion_key", "promotion_id", "name"),
)


class PriceTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def lock(self, keys: Table) -> None:
        """Hold these rows until the transaction ends. Whoever reprices a row holds its list price, and reads
        its inputs only then: the last one to hold it has seen everything that was committed before."""
        row_inputs.lock(self._connection, keys)

    def to_price(self, keys: Table, as_of: int | None = None) -> ToPrice:
        """All that it takes to price those of `keys` that have a list price at the instant `as_of` (ms): by default at
        that at which PostgreSQL reads it, by its clock."""
        common, parameters = concerning(keys, as_of)
        (stored, now, *rules), names = read_together(
            self._connection,
            ((row_inputs.OF_THESE, row_inputs.STORED), (NOW_MS, _NOW), *RULES),
            (*_ROW_NAMES, *RULE_NAMES),
            row_inputs.key_parameters(keys) | parameters,
            common,
        )
        at = int(now["ms"][0]) if as_of is None else as_of
        return ToPrice(row_inputs.split(stored), Rules(*rules), _labels(*names), at)

    def inputs_between(
        self, after: RowKey, until: RowKey, limit: int, scopes: Sequence[RowScope], *, hold: bool = False
    ) -> StoredInputs:
        """The first `limit` rows of any scope with after < key <= until, in key order; with `hold`, held as by `lock`
        before they are read."""
        return row_inputs.inputs_between(self._connection, after, until, limit, scopes, hold)

    def current(self, keys: Table) -> list[EncodedSheet]:
        """The stored sheets of those of `keys` that have one, in no particular order."""
        rows = self._connection.execute(
            sa.text(
                "SELECT product_key, location_key, product_id, location, version,"
                " (extract(epoch FROM valid_until) * 1000)::int8, h.sheet"
                " FROM unnest(CAST(:products AS int4[]), CAST(:locations AS int4[])) AS k (product_key, location_key)"
                " CROSS JOIN LATERAL (SELECT version, valid_until FROM price_sheets s"
                "   WHERE (s.product_key, s.location_key) = (k.product_key, k.location_key) OFFSET 0) ps"
                " CROSS JOIN LATERAL (SELECT sheet FROM price_history h"
                "   WHERE (h.product_key, h.location_key, h.version) = (k.product_key, k.location_key, ps.version)"
                "   OFFSET 0) h"
                " JOIN products USING (product_key) JOIN locations USING (location_key)"
            ),
            row_inputs.key_parameters(keys),
        )
        return [EncodedSheet(*row) for row in rows]

    def versions(self, keys: Table) -> Column:
        """The current version of each of `keys`, in their order, 0 where there is none."""
        found = read_columns(
            self._connection,
            "SELECT coalesce(ps.version, 0)"
            " FROM unnest(%(products)s::int4[], %(locations)s::int4[]) WITH ORDINALITY"
            "   AS k (product_key, location_key, nth)"
            " LEFT JOIN LATERAL (SELECT version FROM price_sheets"
            "   WHERE (product_key, location_key) = (k.product_key, k.location_key) OFFSET 0) ps ON true ORDER BY nth",
            row_inputs.key_parameters(keys),
            _VERSIONS,
        )
        return np.asarray(found["version"])

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

    def labels(self, products: Column, locations: Column, policies: Column, promotions: Column) -> Labels:
        """The public names of these keys."""
        keys = {"products": products, "locations": locations, "policies": policies, "promotions": promotions}
        parameters = {table: np.unique(column) for table, column in keys.items()}
        return _labels(*read_lists(self._connection, _NAMES, parameters))

    def store(self, new: Table, payloads: Sequence[bytes], causes: str | Sequence[str]) -> None:
        """Make these sheets (dtype `NEW_SHEETS`, as JSON in `payloads`) the current ones, and history; the cause is one
        for all, or one each. The rows are locked."""
        said = [causes] * len(new) if isinstance(causes, str) else causes
        sheets = {name: new[name] for name in _SHEETS} | {"never": NEVER}
        if len(new) <= _FEW:
            history = {name: new[name] for name in _HISTORY.names or ()} | {"cause": said, "sheet": list(payloads)}
            run(self._connection, _STORE_FEW, sheets | history)
        else:
            run(self._connection, _STORE_SHEETS, sheets)
            varying = {"cause": [cause.encode() for cause in said], "sheet": payloads}
            write_columns(self._connection, "price_history", _history(new), varying)


def _labels(
    products: Sequence[list[Any]],
    locations: Sequence[list[Any]],
    policies: Sequence[list[Any]],
    promotions: Sequence[list[Any]],
) -> Labels:
    """From the columns of `_NAMES`."""
    product_keys, product_ids = products
    location_keys, ids, codes = locations
    return Labels(
        products=dict(zip(product_keys, product_ids, strict=True)),
        locations=dict(zip(location_keys, zip(ids, map(currency, codes), strict=True), strict=True)),
        policies=_rule_labels(*policies),
        promotions=_rule_labels(*promotions),
    )


def _rule_labels(keys: list[int], ids: list[str], names: list[str]) -> dict[int, Label]:
    return dict(zip(keys, map(Label, ids, names), strict=True))


def _history(new: Table) -> Table:
    """The columns of `price_history` that have a fixed width, as PostgreSQL stores them."""
    rows = np.empty(len(new), _HISTORY)
    for name in _HISTORY.names or ():
        rows[name] = new[name]
    rows["computed_at"] = (new["computed_at"] - _EPOCH_MS) * 1000
    return rows
