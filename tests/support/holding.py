"""Work that is under way, for as long as a test wants it to be."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.shop import Shop


@contextmanager
def nothing_commits(shop: Shop, product: str) -> Iterator[None]:
    """Hold the product's rows, so that whoever reprices it waits."""
    with shop.another_connection() as connection:
        connection.execute(
            "SELECT FROM list_prices JOIN products USING (product_key) WHERE product_id = %s FOR UPDATE", [product]
        )
        yield


def someone_waits(shop: Shop) -> bool:
    """Whether somebody waits for rows that another holds."""
    count: int = shop.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")[0][0]
    return count > 0
