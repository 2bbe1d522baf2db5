"""The formula's inputs: the same however they are read, and read after the rows are held."""

import threading

import numpy as np
import psycopg
import pytest

from app.adapters.store import Store
from app.domain.columns import ABSENT, AFTER_ALL, BEFORE_ALL, ROW_KEYS, RowKey, Table
from app.domain.rows import RowScope, StoredInputs
from tests.support.waiting import eventually

EVERYTHING = [RowScope()]

# Rows, signals and sheets with gaps of their own: the first and the last row have neither, some products no rows.
MANY = """
    INSERT INTO locations (location, name, currency, currency_number, time_zone)
    SELECT 'L-' || n, 'L', 'USD', 840, 'UTC' FROM generate_series(1, 5) n;
    INSERT INTO products (product_id, name, category_key, department_key)
    SELECT 'Q-' || n, 'Q', nullif(n % 3, 0), CASE WHEN n % 4 = 0 THEN 1 END FROM generate_series(1, 40) n;
    DELETE FROM list_prices;
    INSERT INTO list_prices SELECT product_key, location_key, product_key * 100 + location_key, 0
    FROM products, locations WHERE product_key % 5 <> 2 AND (product_key + location_key) % 7 <> 3;
    INSERT INTO signals (product_key, location_key, cost, stock)
    SELECT product_key, location_key, product_key, nullif(location_key, 4) FROM list_prices
    WHERE (product_key * 3 + location_key) % 4 = 1 AND product_key BETWEEN 3 AND 40;
    INSERT INTO signals (product_key, location_key, demand_bp) SELECT product_key, 1, 9 FROM products
    WHERE product_key % 5 = 2;
    INSERT INTO price_sheets SELECT product_key, location_key, product_key, -location_key, NULL FROM list_prices
    WHERE (product_key + location_key) % 3 = 1 AND product_key BETWEEN 3 AND 40;
"""


@pytest.fixture
def rows(store: Store, database_url: str) -> Table:
    """The keys of all rows."""
    with psycopg.connect(database_url) as connection:
        connection.execute(MANY.encode())
        found = connection.execute("SELECT product_key, location_key FROM list_prices ORDER BY 1, 2").fetchall()
    return np.array(found, ROW_KEYS)


def said(stored: StoredInputs) -> list[tuple[object, ...]]:
    columns = zip(stored.inputs.tolist(), stored.versions.tolist(), stored.digests.tolist(), strict=True)
    return sorted(columns)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_neighbours_are_read_as_they_are_one_by_one(store: Store, rows: Table, limit: int, hold: bool) -> None:
    after: RowKey = BEFORE_ALL
    parts: list[tuple[object, ...]] = []
    with store.transaction() as tx:
        alone = said(tx.prices.to_price(rows).stored)
        while len(part := tx.prices.inputs_between(after, AFTER_ALL, limit, EVERYTHING, hold=hold).inputs):
            assert len(part) <= limit
            last = part[-1]
            parts += said(tx.prices.inputs_between(after, AFTER_ALL, limit, EVERYTHING, hold=hold))
            after = int(last["product_key"]), int(last["location_key"])
    assert parts == alone
    inputs = [row for row, _, _ in alone]
    assert len(alone) == len(rows)
    assert {row[6] == ABSENT for row in inputs} == {True, False}  # type: ignore[index]
    assert {version == 0 for _, version, _ in alone} == {True, False}


def test_only_rows_within_the_bounds_and_scopes_are_read(store: Store, rows: Table) -> None:
    first, last = rows[10].item(), rows[20].item()
    with store.transaction() as tx:
        between = tx.prices.inputs_between(first, last, 1000, EVERYTHING)
        assert said(between) == said(tx.prices.to_price(rows[11:21]).stored)
        there = tx.prices.inputs_between(BEFORE_ALL, AFTER_ALL, 1000, [RowScope(location_key=3)], hold=True)
        assert said(there) == said(tx.prices.to_price(rows[rows["location_key"] == 3]).stored)
        assert not len(tx.prices.inputs_between(AFTER_ALL, AFTER_ALL, 1000, EVERYTHING).inputs)


@pytest.mark.parametrize("scope", [RowScope(), RowScope(location_key=1)], ids=["all", "one location"])
def test_rows_that_are_to_be_held_are_read_as_whoever_held_them_leaves_them(
    store: Store, rows: Table, database_url: str, scope: RowScope
) -> None:
    ((product, location),) = rows[rows["location_key"] == 1][:1].tolist()
    seen: list[int] = []

    def read() -> None:
        with store.transaction() as tx:
            stored = tx.prices.inputs_between(BEFORE_ALL, AFTER_ALL, 1000, [scope], hold=True)
            mine = (stored.inputs["product_key"] == product) & (stored.inputs["location_key"] == location)
            seen.extend(stored.inputs["list_price"][mine].tolist())

    reader = threading.Thread(target=read)
    with store.transaction() as tx:
        tx.prices.lock(rows)
        assert len(tx.rows.holders()) == 1
        reader.start()
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with psycopg.connect(database_url, autocommit=True) as connection:
            eventually(lambda: connection.execute(waiting).rowcount > 0)
        tx.catalog.set_signals("list_price", [(product, location, 4321, 1)])
    reader.join()
    assert seen == [4321]
    with store.transaction() as tx:
        assert tx.rows.holders() == set()


def test_the_driver_remembers_the_statement_that_reads_what_pricing_takes(store: Store, rows: Table) -> None:
    """It does for what is short enough; looking through this one costs as much as a round trip."""
    remembered = psycopg._queries._query2pg.cache_info
    with store.transaction() as tx:
        tx.prices.to_price(rows)
        before = remembered()
        tx.prices.to_price(rows)
    assert (remembered().hits, remembered().misses) == (before.hits + 1, before.misses)
