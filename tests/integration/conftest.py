"""A Valkey client, and a store with a catalogue of two products at two places, for each test anew."""

from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest
import redis

from app.adapters.database import make_engine
from app.adapters.redis_clients import make_redis
from app.adapters.store import Store
from app.domain.columns import ROW_KEYS, Table
from tests.support.recalculating import Jobs

CATALOG = """
    INSERT INTO locations (location, name, currency, currency_number, time_zone)
    VALUES ('NY', 'New York', 'USD', 840, 'America/New_York'), ('TYO', 'Tokyo', 'JPY', 392, 'Asia/Tokyo');
    INSERT INTO departments (name) VALUES ('Drinks');
    INSERT INTO categories (name) VALUES ('Coffee'), ('Tea');
    INSERT INTO products (product_id, name, department_key, category_key)
    SELECT 'P-' || category_key, name, 1, category_key FROM categories;
    INSERT INTO list_prices SELECT product_key, location_key, 1000, 0 FROM products, locations;
"""


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    with make_redis(valkey_url, timeout_s=5) as client:
        yield client


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """P-1 (Coffee) and P-2 (Tea), each at 10.00 in NY and at 1000 in TYO."""
    with psycopg.connect(database_url) as connection:
        connection.execute(CATALOG.encode())
    store = Store(make_engine(database_url, pool_size=8))
    yield store
    store.close()


@pytest.fixture
def jobs(store: Store, valkey: redis.Redis, database_url: str) -> Jobs:
    """Twenty rows: P-1 … P-10, each at 10.00 in NY and at 1000 in TYO; P-1 is coffee, P-2 tea."""
    jobs = Jobs(store, valkey, database_url)
    jobs.add_products(3, 10)
    return jobs


@pytest.fixture
def row(store: Store) -> Callable[..., Table]:
    """The key of a product at a location, as `reprice` takes it."""

    def key(product_id: str = "P-1", location: str = "NY") -> Table:
        with store.transaction() as tx:
            scope = tx.catalog.subjects({product_id}, {location}).scope(product_id, location)
        return np.array([(scope.product_key, scope.location_key)], ROW_KEYS)

    return key
