"""Current sheets are found row by row, however many versions a price has had."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from app.adapters.database import make_engine
from app.adapters.sheet_queries import STORED
from app.adapters.store import Store
from app.domain.rows import StoredSheet

PRODUCTS, VERSIONS = 200, 50
MANY = f"""
    INSERT INTO products (product_id, name) SELECT 'P-' || n, 'P' FROM generate_series(1, {PRODUCTS}) n;
    INSERT INTO locations (location, name, currency, currency_number, time_zone)
    SELECT 'L-' || n, 'L', 'USD', 840, 'UTC' FROM generate_series(1, 10) n;
    INSERT INTO list_prices (product_key, location_key, amount, position)
    SELECT product_key, location_key, 100, 0 FROM products CROSS JOIN locations;
    INSERT INTO price_sheets (product_key, location_key, version, digest)
    SELECT product_key, location_key, {VERSIONS}, 1 FROM list_prices;
    INSERT INTO price_history (product_key, location_key, version, computed_at, list_price, base_price, everyone_price,
                               member_price, cause, sheet)
    SELECT product_key, location_key, version, now(), 1, 1, 1, 1, 'test', convert_to('sheet ' || version, 'UTF8')
    FROM list_prices CROSS JOIN generate_series(1, {VERSIONS}) version;
"""


@pytest.fixture(scope="module")
def url(module_database_url: str) -> str:
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute(MANY.encode())
        connection.execute("VACUUM ANALYZE")
    return module_database_url


@pytest.mark.parametrize("count", [1, 20, PRODUCTS])
def test_no_version_is_read_but_the_current_one(url: str, count: int) -> None:
    named = {"products": [f"P-{n}" for n in range(1, count + 1)], "locations": ["L-3"] * count}
    with psycopg.connect(url) as connection:
        ((plan,),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {STORED}".encode(), named).fetchall()
    for node in nodes(plan[0]["Plan"]):
        if node.get("Relation Name") in ("list_prices", "price_sheets", "price_history"):
            assert node["Actual Rows"] * node["Actual Loops"] <= count, node
            assert "Rows Removed by Filter" not in node


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def test_each_name_has_its_answer_in_its_place(url: str) -> None:
    store = Store(make_engine(url, pool_size=1))
    names = [("P-2", "L-1"), ("nothing", "L-1"), ("P-1", "nowhere"), ("P-1", "L-10"), ("P-2", "L-1")]
    with store.reading() as tx:
        found = tx.sheets.stored(names)
        assert tx.sheets.stored([]) == []
    store.close()
    assert [(known(sheet), sheet.listed, sheet.version, sheet.sheet) for sheet in found] == [
        ((True, True), True, VERSIONS, b"sheet 50"),
        ((False, True), False, 0, None),
        ((True, False), False, 0, None),
        ((True, True), True, VERSIONS, b"sheet 50"),
        ((True, True), True, VERSIONS, b"sheet 50"),
    ]
    assert found[0] == found[4] != found[3]


def known(sheet: StoredSheet) -> tuple[bool, bool]:
    """Whether there is such a product, and such a location."""
    return sheet.product_key is not None, sheet.location_key is not None
