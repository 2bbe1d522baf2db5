"""What a price was, and the lowest that it was."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from app.domain.columns import Segment
from app.domain.money import to_decimal
from app.domain.quote import quote
from app.domain.rows import HistoryEntry
from app.domain.sheet import decode_sheet
from app.errors import NotFound
from app.services.ports import Store
from app.services.quoting import why_unknown

LOOK_BACK = timedelta(days=30)
"""Directive 98/6/EC, article 6a: the prior price is the lowest of at least the 30 days before the reduction."""


def price_history(
    store: Store, name: tuple[str, str], before: date | None, before_version: int | None, limit: int, now_ms: int
) -> dict[str, Any]:
    """The newest versions of (product id, location), `limit` at most, and the lowest prices of the 30 days
    that ended when the day `before` (None: today) began in the location's time zone. Raises `NotFound`."""
    with store.reading() as tx:
        (stored,) = tx.sheets.stored([name])
        place = tx.sheets.location(name[1])
        if (reason := why_unknown(name, stored)) is not None or place is None:
            raise NotFound(reason or "")
        currency, time_zone = place
        zone = ZoneInfo(time_zone)
        day = before or datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(zone).date()
        end = datetime(day.year, day.month, day.day, tzinfo=zone)
        entries = tx.sheets.history(*name, before_version, limit + 1)
        reference = tx.sheets.in_force(*name, end - LOOK_BACK, end)

    def money(minor: int) -> Decimal:
        return to_decimal(minor, currency.decimals)

    def version(entry: HistoryEntry) -> dict[str, Any]:
        prices = ("list_price", "base_price", "everyone_price", "member_price")
        said = entry._asdict() | {field: money(getattr(entry, field)) for field in prices}
        explained = quote(*name, decode_sheet(said.pop("sheet")), Segment.EVERYONE, 1, "database")
        return said | {"adjustments": explained.adjustments, "rejected": explained.rejected}

    return {
        "product_id": name[0],
        "location": name[1],
        "currency": currency.code,
        "versions": [version(entry) for entry in entries[:limit]],
        "next_before": entries[limit - 1].version if len(entries) > limit else None,
        "lowest_30_days": {
            "before": day,
            "everyone_price": money(min(entry.everyone_price for entry in reference)),
            "member_price": money(min(entry.member_price for entry in reference)),
        }
        if reference
        else None,
    }
