"""Importing into a real PostgreSQL and Valkey: exact, repeatable, and whole after any death."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from app.adapters.price_cache import Lifetimes, PriceCache, slot_key
from app.adapters.redis_clients import make_redis
from app.catalog.loading import Importer, ImportResult, open_importer
from app.catalog.merging import Listener, Refusal
from app.catalog.sources import fill, open_source
from app.domain.columns import PolicyKind, PromotionKind
from app.domain.positions import position_at
from app.domain.sheet import PriceSheet
from app.errors import InvalidInput, Unavailable
from app.settings import Settings
from tests.support.sheets import spelled_out
from tests.support.stores import Stores
from tests.support.system import PRICING, free_port
from tests.support.waiting import eventually

TABLES = ("locations", "products", "list_prices", "signals", "policies", "promotions", "price_sheets", "price_history")
SHOP = {
    "locations.csv": "location,name,currency,time_zone\nNY,New York,USD,America/New_York\nTYO,Tokyo,JPY,Asia/Tokyo\n",
    "products.csv": "product_id,name,department,category\nA,Apple,Produce,Fruit\nB,Bread,Bakery,Bread\n",
    "list_prices.csv": "product_id,location,amount\nA,NY,1.99\nA,TYO,300\nB,NY,3.50\n",
    "promotions.csv": "promotion_id,name,category,kind,value,segment\nfruit,Fruit,Fruit,percent,10,member\n",
}


class Database:
    """One test's stores, and what is in them."""

    def __init__(self, database_url: str, valkey_url: str) -> None:
        self.settings = Settings(database_url=database_url, cache_url=valkey_url)
        self.environment = {"PRICING_DATABASE_URL": database_url, "PRICING_CACHE_URL": valkey_url}
        self.url, self.cache = database_url, redis.Redis.from_url(valkey_url)
        self.refused: list[Refusal] = []

    def load(self, source: Path | str, change: Callable[[Importer], Importer] = lambda i: i) -> ImportResult:
        self.refused = []
        opened = open_source(str(source))
        with open_importer(self.settings, Listener(refused=self.refused.append)) as importer:
            return change(importer).run(opened.name, opened.parts)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def snapshot(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row with the transaction that wrote it."""
        return {table: self.sql(f"SELECT xmin::text, t::text FROM {table} t ORDER BY 2") for table in TABLES}

    def member_prices(self) -> dict[tuple[str, str], int]:
        rows = self.sql(
            "SELECT product_id, location, member_price FROM price_sheets JOIN price_history"
            " USING (product_key, location_key, version) JOIN products USING (product_key)"
            " JOIN locations USING (location_key)"
        )
        return {(product, location): price for product, location, price in rows}

    def cached(self, product: str, location: str) -> PriceSheet:
        value: bytes = self.cache.get(slot_key((product, location)))  # type: ignore[assignment]
        return spelled_out(value.split(b" ", 5)[5])


@pytest.fixture
def database(database_url: str, valkey_url: str) -> Database:
    return Database(database_url, valkey_url)


def folder(path: Path, files: Mapping[str, str] = SHOP, **changed: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in {**files, **{f"{kind}.csv": text for kind, text in changed.items()}}.items():
        (path / name).write_text(content)
    return path


def test_an_import_ends_in_stored_cached_prices_with_their_cause(database: Database, tmp_path: Path) -> None:
    result = database.load(folder(tmp_path / "shop"))
    assert [(part.name, part.new) for part in result.parts] == [
        ("locations.csv", 2), ("products.csv", 2), ("list_prices.csv", 3), ("promotions.csv", 1)
    ]  # fmt: skip
    assert result.sheets == 3
    assert database.member_prices() == {("A", "NY"): 179, ("A", "TYO"): 270, ("B", "NY"): 350}
    assert database.sql("SELECT DISTINCT cause FROM price_history") == [("import:shop",)]
    assert database.cached("A", "NY").member.tiers[0].final == 179 * 10_000


def test_a_second_import_writes_nothing(database: Database, tmp_path: Path) -> None:
    database.load(folder(tmp_path / "shop"))
    database.load("sample")
    before = database.snapshot()
    again = [database.load(tmp_path / "shop"), database.load("sample")]
    assert all(part.new == part.changed == part.refused == 0 for result in again for part in result.parts)
    assert [result.sheets for result in again] == [0, 0]
    assert database.snapshot() == before


def test_only_what_differs_is_written(database: Database, tmp_path: Path) -> None:
    database.load(folder(tmp_path / "shop"))
    result = database.load(
        folder(tmp_path / "shop", list_prices="product_id,location,amount\nA,NY,2.49\nA,TYO,300\nB,NY,3.50\n")
    )
    assert [(part.name, part.changed) for part in result.parts if part.changed] == [("list_prices.csv", 1)]
    assert result.sheets == 1
    assert sorted(database.sql("SELECT version FROM price_sheets")) == [(1,), (1,), (2,)]
    assert database.cached("A", "NY").list_price == 249 * 10_000


def test_a_bad_row_is_named_and_the_rest_goes_in(database: Database, tmp_path: Path) -> None:
    prices = (
        "product_id,location,amount\nA,NY,1.999\nA,TYO,300.5\nZ,NY,1.00\nA,LA,1.00\nB,NY,3.50\nB,NY,3.60\nA,NY,-1\n"
    )
    result = database.load(folder(tmp_path / "shop", list_prices=prices))
    assert {(refusal.line, refusal.reason) for refusal in database.refused} == {
        (2, "1.999 has more than the currency's 2 decimals"),
        (3, "300.5 has more than the currency's 0 decimals"),
        (4, "product_id: there is no product 'Z'"),
        (5, "location: there is no location 'LA'"),
        (7, "is there twice: line 6 has it already"),
        (8, "amount: Input should be greater than or equal to 0"),
    }
    assert (result.parts[2].read, result.parts[2].new, result.parts[2].refused) == (7, 1, 6)
    assert database.member_prices() == {("B", "NY"): 350}


def test_rules_that_cannot_hold_are_refused(database: Database, tmp_path: Path) -> None:
    database.load(
        folder(
            tmp_path / "shop",
            promotions="promotion_id,name,product_id,currency,kind,value\np,P,Z,,percent,5\nq,Q,A,USD,fixed,1.005\n",
            policies="policy_id,name,kind,category\none,One,list,Fruit\ntwo,Two,list,Fruit\none,Again,list,Bread\n",
        )
    )
    assert {(refusal.part, refusal.line) for refusal in database.refused} == {
        ("promotions.csv", 2), ("promotions.csv", 3), ("policies.csv", 3), ("policies.csv", 4)
    }  # fmt: skip


def test_a_location_keeps_the_currency_that_its_prices_are_in(database: Database, tmp_path: Path) -> None:
    database.load(folder(tmp_path / "shop"))
    database.load(folder(tmp_path / "shop", locations=SHOP["locations.csv"].replace("USD", "EUR")))
    assert [refusal.reason for refusal in database.refused] == [
        "currency: it is USD, and the prices there depend on it"
    ]


def test_what_was_said_later_stays(database: Database, tmp_path: Path) -> None:
    database.load(folder(tmp_path / "shop"))
    later = position_at(2**41)
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE list_prices SET amount = 777, position = %s WHERE amount = 350", [later])
        connection.execute("UPDATE promotions SET removed = true, position = %s", [later])
    result = database.load(tmp_path / "shop")
    assert all(part.changed == 0 for part in result.parts)
    assert database.member_prices() == {("A", "NY"): 199, ("A", "TYO"): 300, ("B", "NY"): 777}


def test_the_sample_shows_every_kind_of_rule(database: Database) -> None:
    result = database.load("sample")
    assert result.sheets == 2700
    assert {kind for (kind,) in database.sql("SELECT kind FROM policies")} == set(PolicyKind)
    assert {kind for (kind,) in database.sql("SELECT kind FROM promotions")} == set(PromotionKind)
    shown = database.cached("P-100", "NY")
    assert {change.step for change in shown.changes} == {"policy", "rounding"}
    assert len(shown.member.changes) == 2
    assert {rejected.reason for rejected in shown.member.rejected} == {"not_started", "stack_was_better"}
    assert shown.base_price % 1_000_000 == 990_000


def test_an_empty_database_is_filled_once(database: Database) -> None:
    def nothing(*_: object) -> None: ...

    assert fill(database.settings, "none", nothing, nothing) is None
    filled = fill(database.settings, "sample", nothing, nothing)
    assert filled is not None
    assert filled.sheets == 2700
    assert fill(database.settings, "sample", nothing, nothing) is None


def killed_while_it_waits_for(table: str, database: Database, source: Path | str) -> None:
    """SIGKILL an import at the moment in which it wants to write to `table`."""
    with psycopg.connect(database.url) as blocker:
        blocker.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        importing = subprocess.Popen(
            [PRICING, "import", str(source)], env={**os.environ, **database.environment}, stdout=subprocess.DEVNULL
        )
        waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        eventually(lambda: database.sql(waiting) or importing.poll(), timeout_s=60)
        importing.send_signal(signal.SIGKILL)
        assert importing.wait() == -signal.SIGKILL


@pytest.mark.parametrize("table", ["list_prices", "promotions", "price_sheets", "price_history"])
def test_after_a_kill_the_next_import_completes_the_catalogue(database: Database, table: str) -> None:
    def nothing(*_: object) -> None: ...

    killed_while_it_waits_for(table, database, "sample")
    filled = fill(database.settings, "sample", nothing, nothing)
    assert filled is not None
    assert len(database.member_prices()) == 2700
    assert database.load("sample").sheets == 0
    assert database.sql("SELECT count(*) FROM tasks WHERE state <> 'succeeded'") == [(0,)]


def test_a_price_that_was_stored_but_not_cached_reaches_the_cache_with_the_next_import(
    database: Database, tmp_path: Path
) -> None:
    database.load(folder(tmp_path / "shop"))
    folder(tmp_path / "shop", list_prices="product_id,location,amount\nA,NY,2.49\n")
    away = make_redis(f"redis://127.0.0.1:{free_port()}", 1.0)
    nowhere = PriceCache(away, Lifetimes(60, 60, 60), lambda keys: keys["product_key"])
    with pytest.raises(Unavailable):
        database.load(tmp_path / "shop", lambda i: replace(i, cache=nowhere))
    assert database.cached("A", "NY").list_price == 199 * 10_000
    assert database.load(tmp_path / "shop").sheets == 0
    assert database.cached("A", "NY").list_price == 249 * 10_000


def test_the_command_reports_and_exits_with_one_when_rows_were_refused(database: Database, tmp_path: Path) -> None:
    shop = folder(tmp_path / "shop", list_prices="product_id,location,amount\nA,NY,1.99\nZ,NY,1.00\n")
    errors = tmp_path / "errors.csv"
    done = subprocess.run(
        [PRICING, "import", str(shop), "--errors", str(errors)],
        env={**os.environ, **database.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "list_prices.csv:3: product_id: there is no product 'Z'\n"
    assert errors.read_text().splitlines() == [
        "part,line,reason",
        "list_prices.csv,3,product_id: there is no product 'Z'",
    ]
    assert "1 prices computed" in done.stdout


def test_a_database_without_tables_is_named_as_such(stores: Stores, database: Database) -> None:
    bare = database.settings.model_copy(update={"database_url": SecretStr(stores.postgres_url)})
    with pytest.raises(InvalidInput, match="pricing migrate"), open_importer(bare, Listener()):
        pass
