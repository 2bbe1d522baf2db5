"""The grocer's year week by week: what became dearer or cheaper, and who bought what for how much."""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from app.catalog.completejourney import ROW, first_prices, purchases, weekly_prices


class Price(NamedTuple):
    """What a product costs in a store, in cents: `regular`, and `paid` with the loyalty card."""

    product: int
    store: int
    regular: int
    paid: int


class Purchase(NamedTuple):
    """`paid` per unit, in cents; `price` is what the product cost in that store for most of that week, and
    `several` whether it had more than one price there then."""

    product: int
    store: int
    quantity: int
    paid: int
    price: int
    several: bool


class Year:
    """The whole year, weeks 1 to 53."""

    def __init__(self) -> None:
        self._bought = purchases()
        self._weekly = weekly_prices(self._bought)

    def standing(self, first: int, last: int) -> list[Price]:
        """Where prices stand when week `first` begins: of all that have changed since they were imported, and
        of all that are bought in weeks `first` to `last`."""
        imported = first_prices(self._weekly)
        before = self._weekly.filter(pl.col("week") < first).unique(ROW, keep="last", maintain_order=True)
        needed = self._bought.filter(pl.col("week").is_between(first, last)).select(ROW).unique()
        stood = (
            imported.join(before, on=ROW, how="left", suffix="_then")
            .join(needed.with_columns(needed=True), on=ROW, how="left")
            .with_columns(
                now_regular=pl.coalesce("regular_then", "regular"),
                now_paid=pl.coalesce("paid_then", "paid"),
            )
            .filter(
                pl.col("needed").is_not_null()
                | (pl.col("now_regular") != pl.col("regular"))
                | (pl.col("now_paid") != pl.col("paid"))
            )
        )
        return [Price(*row) for row in stood.select(*ROW, "now_regular", "now_paid").iter_rows()]

    def changes(self, week: int) -> list[tuple[Price, Price]]:
        """Before and after, for each price of this week that is not what it was when last seen."""
        regular, paid = (pl.col(name).shift(1).over(ROW) for name in ("regular", "paid"))
        changed = (
            self._weekly.with_columns(old_regular=regular, old_paid=paid)
            .filter(pl.col("week") == week, pl.col("old_regular").is_not_null())
            .filter((pl.col("regular") != pl.col("old_regular")) | (pl.col("paid") != pl.col("old_paid")))
            .select(*ROW, "old_regular", "old_paid", "regular", "paid")
        )
        return [(Price(p, s, r0, p0), Price(p, s, r, d)) for p, s, r0, p0, r, d in changed.iter_rows()]

    def purchases(self, week: int) -> Iterator[Purchase]:
        """This week's, in the order of the data."""
        this = self._bought.filter(pl.col("week") == week)
        pairs = this.group_by(ROW).agg(several=pl.struct("regular", "paid").n_unique() > 1)
        usual = self._weekly.filter(pl.col("week") == week).select(*ROW, price="paid")
        rows = this.join(usual, on=ROW, maintain_order="left").join(pairs, on=ROW, maintain_order="left")
        for row in rows.select(*ROW, "quantity", "paid", "price", "several").iter_rows():
            yield Purchase(*row)
