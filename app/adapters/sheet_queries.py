"""What readers ask of stored sheets: the current one, and history."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from app.adapters.database import run
from app.domain.money import Currency, currency
from app.domain.rows import HistoryEntry, StoredSheet

# Row by row, whatever the planner would rather do: it takes the pair of keys for rarer than it is, and would read every
# version that a row has had to find the current one.
STORED = """
    SELECT p.product_key, l.location_key, lp.amount IS NOT NULL, coalesce(ps.version, 0),
           (extract(epoch FROM ps.valid_until) * 1000)::int8, h.sheet
    FROM unnest(%(products)s::text[], %(locations)s::text[]) WITH ORDINALITY AS n (product_id, location, nth)
    LEFT JOIN LATERAL (SELECT product_key FROM products WHERE product_id = n.product_id OFFSET 0) p ON true
    LEFT JOIN LATERAL (SELECT location_key FROM locations WHERE location = n.location OFFSET 0) l ON true
    LEFT JOIN LATERAL (
        SELECT amount FROM list_prices WHERE (product_key, location_key) = (p.product_key, l.location_key) OFFSET 0
    ) lp ON true
    LEFT JOIN LATERAL (
        SELECT version, valid_until FROM price_sheets
        WHERE (product_key, location_key) = (p.product_key, l.location_key) OFFSET 0
    ) ps ON true
    LEFT JOIN LATERAL (
        SELECT sheet FROM price_history
        WHERE (product_key, location_key, version) = (p.product_key, l.location_key, ps.version) OFFSET 0
    ) h ON true
    ORDER BY nth
"""

_HISTORY = """
    SELECT version, computed_at, lead(computed_at) OVER (ORDER BY version) AS until,
           list_price, base_price, everyone_price, member_price, cause, sheet
    FROM price_history
    WHERE product_key = (SELECT product_key FROM products WHERE product_id = :product_id)
      AND location_key = (SELECT location_key FROM locations WHERE location = :location)
"""


class SheetQueries:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def stored(self, names: Sequence[tuple[str, str]]) -> list[StoredSheet]:
        """For each (product id, location), in order, what is stored of it."""
        products, locations = zip(*names, strict=True) if names else ((), ())
        rows = run(self._connection, STORED, {"products": list(products), "locations": list(locations)})
        return [StoredSheet(*row) for row in rows]

    def location(self, location: str) -> tuple[Currency, str] | None:
        """A location's currency and time zone (IANA name), or None where it is unknown."""
        row = self._connection.execute(
            sa.text("SELECT currency, time_zone FROM locations WHERE location = :location"),
            {"location": location},
        ).one_or_none()
        return None if row is None else (currency(row.currency), row.time_zone)

    def history(self, product_id: str, location: str, before: int | None, limit: int) -> list[HistoryEntry]:
        """The newest versions first, those below version `before` where given."""
        rows = self._connection.execute(
            sa.text(
                f"SELECT * FROM ({_HISTORY}) h WHERE version < coalesce(:before, {2**62})"
                " ORDER BY version DESC LIMIT :limit"
            ),
            {"product_id": product_id, "location": location, "before": before, "limit": limit},
        )
        return [HistoryEntry(*row) for row in rows]

    def in_force(self, product_id: str, location: str, start: datetime, end: datetime) -> list[HistoryEntry]:
        """Every version that was in force at some moment from `start` up to but not including `end`."""
        rows = self._connection.execute(
            sa.text(
                f"SELECT * FROM ({_HISTORY}) h WHERE computed_at < :end AND (until IS NULL OR until > :start)"
                " ORDER BY version"
            ),
            {"product_id": product_id, "location": location, "start": start, "end": end},
        )
        return [HistoryEntry(*row) for row in rows]
