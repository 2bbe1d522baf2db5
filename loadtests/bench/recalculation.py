"""Full recalculations through the queue and its workers: how fast, how large, and whether they grow with the catalogue.

Catalogues of 10,000 to 5 million prices grow in one database of their own, and the real one is measured where it is.
Beside each stands what the stores could do alone: COPY of as many rows into tables without indexes, and MSET of as
many slots, by one client.
"""

import http.client
import json
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import psycopg
import redis

from loadtests.bench.journeys import Client
from loadtests.bench.measures import Bench
from loadtests.bench.results import Result, figure, result
from loadtests.bench.servers import Product

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
QUICK_SIZES = SIZES[:2]
LOCATIONS = 100
PROMOTION = "bench"
LARGE = 200_000
"""From here on a recalculation takes long enough for one to be a measurement of how speed grows; a catalogue is a real
one, which is measured several times: the first ones find an empty cache, and pages that are on the disk alone."""

MB = 1_000_000
MOST_MB = 500
UNCHANGED_PER_S, CHANGED_PER_S, LINEAR = 300_000, 40_000, 0.8
DISK_BYTES = 3_000
"""That one price takes at most: in its tables with one version of its history."""

LIMIT_ROWS = 1_000_000
"""The stores' own speed is measured with so many, at most."""

BLOCK = 10_000
COPY_HEAD, COPY_END = 19, 2
"""Bytes before and after the rows of a binary COPY."""


def recalculation(bench: Bench) -> Iterator[Result]:
    """Everything is recalculated: when nothing changes, and when every price does."""
    folder = bench.folder / "recalculation"
    folder.mkdir()
    folder.chmod(0o755)
    product = Product(folder, "none", {"PRICING_WORKERS": "1"})
    try:
        yield from growing(bench, product.wait(), folder)
    finally:
        product.stop()
        shutil.rmtree(folder)
    with psycopg.connect(bench.product.stores["PRICING_DATABASE_URL"]) as connection:
        (sheets,) = connection.execute("SELECT count(*) FROM price_sheets").fetchone() or (0,)
    if sheets >= LARGE:
        yield from measured(bench, bench.product, sheets, f"the real {sheets:,} prices", {}, judged=True)
        change(bench.product, {"removed": PROMOTION}, sheets)


def growing(bench: Bench, product: Product, folder: Path) -> Iterator[Result]:
    before: dict[str, tuple[str, float]] = {}
    with psycopg.connect(product.stores["PRICING_DATABASE_URL"], autocommit=True) as connection:
        for size in QUICK_SIZES if bench.quick else SIZES:
            if shutil.disk_usage(folder).free < (size * DISK_BYTES):
                bench.say(f"{size:,} prices are left out: they need {size * DISK_BYTES / MB:,.0f} MB on the disk")
                return
            grow(connection, size)
            recalculate(product, size)
            connection.execute("TRUNCATE price_history")  # nobody reads it here, and it would be most of the disk
            connection.execute("VACUUM ANALYZE")
            yield from measured(bench, product, size, f"{size:,} prices", before, judged=False)


def measured(
    bench: Bench, product: Product, size: int, name: str, before: dict[str, tuple[str, float]], *, judged: bool
) -> Iterator[Result]:
    """`before` has the figures of the next smaller catalogue, and then those of this one."""
    rounds = 1 if size >= LARGE and not judged else 3
    seen = {
        "nothing changes": [recalculate(product, size) for _ in range(rounds)],
        "every price changes": [change(product, {"promotion": another()}, size) for _ in range(rounds)],
    }
    targets = {"nothing changes": UNCHANGED_PER_S, "every price changes": CHANGED_PER_S}
    for what, rates in seen.items():
        bench.say(f"{name}, {what}: {', '.join(map(figure, rates))} a second")
        if judged:
            least = targets[what]
            yield result(
                f"{name}, {what}", "prices/s", rates,
                target=f"≥ {least:,}", holds=lambda value, least=least: value >= least,
            )  # fmt: skip
        elif what in before:
            smaller, its_rate = before[what]
            yield result(
                f"{name}, {what}", "prices/s", rates, [its_rate] * rounds, smaller,
                f"≥ {LINEAR}", lambda ratio: ratio >= LINEAR,
            )  # fmt: skip
        else:
            yield result(f"{name}, {what}", "prices/s", rates)
        before[what] = name, median(rates)
    largest = peak_mb(product)
    yield result(
        f"{name}: peak RSS of a worker", "MB", [largest], target=f"≤ {MOST_MB}", holds=lambda mb: mb <= MOST_MB
    )
    changed = seen["every price changes"][-1:]
    rows = min(size, LIMIT_ROWS)
    yield result(f"{name}: COPY of history and sheets alone", "rows/s", [copied(product, rows)], changed, "all changed")
    yield result(f"{name}: MSET of slots alone", "slots/s", [cached(product, rows)], changed, "all changed")


_percents = count(1)


def another() -> dict[str, Any]:
    """A promotion of everything, unlike the last one, also where one percent more is less than a cent."""
    percent = next(_percents)
    return {"promotion_id": PROMOTION, "name": f"{percent} % off", "kind": "percent", "value": percent}


def recalculate(product: Product, size: int) -> float:
    """Look at every price again; how many a second."""
    return rate(finished(product, Client(product).post("/api/v1/recalculate", None)["task_id"], size))


def change(product: Product, promotion: dict[str, Any], size: int) -> float:
    """Change a promotion of everything, and with it every price; how many a second."""
    published = Client(product).post("/api/v1/publish-market-event", {"type": "promotion.changed", "data": promotion})
    task = finished(product, published["event_id"], size)
    if task["changed"] != size:
        raise SystemExit(f"{task['changed']:,} of {size:,} prices changed")
    return rate(task)


def rate(task: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(task[name]) for name in ("started_at", "ended_at"))
    return task["total"] / (ended - began).total_seconds()


def finished(product: Product, task_id: str, size: int) -> dict[str, Any]:
    """The task, once it has succeeded."""
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=30)
    deadline = time.monotonic() + 60 + size / 5_000
    while time.monotonic() < deadline:
        connection.request("GET", f"/api/v1/tasks/{task_id}")
        response = connection.getresponse()
        task = json.loads(response.read())
        if response.status == 200 and task["state"] == "succeeded":
            return task
        if response.status not in (200, 404) or task.get("state") == "failed":
            break
        time.sleep(0.1)
    raise SystemExit(f"recalculation {task_id}: {task}")


def grow(connection: psycopg.Connection, size: int) -> None:
    """Products at `LOCATIONS` places, until there are `size` list prices."""
    connection.execute(
        "INSERT INTO locations (location, name, currency, currency_number, time_zone)"
        " SELECT 'L-' || n, 'Place ' || n, 'USD', 840, 'America/New_York' FROM generate_series(1, %s) n"
        " ON CONFLICT DO NOTHING",
        [LOCATIONS],
    )
    connection.execute(
        "WITH new AS (INSERT INTO products (product_id, name) SELECT 'P-' || n, 'Product ' || n"
        " FROM generate_series((SELECT count(*) + 1 FROM products), %s) n RETURNING product_key)"
        " INSERT INTO list_prices (product_key, location_key, amount, position)"
        " SELECT product_key, location_key, 100 + (product_key * 31 + location_key * 7) %% 5000, 0"
        " FROM new CROSS JOIN locations ORDER BY 1, 2",
        [size // LOCATIONS],
    )
    connection.execute("VACUUM ANALYZE list_prices, products, locations")


def peak_mb(product: Product) -> float:
    """The most memory that a worker has had since it began, by the kernel's count."""
    workers = psutil.Process(product.pid_of("jobs")).children()
    status = [Path(f"/proc/{worker.pid}/status").read_text() for worker in workers]
    return max(int(text.partition("VmHWM:")[2].split()[0]) for text in status) * 1024 / MB


def copied(product: Product, rows: int) -> float:
    """Sheets a second whose row and history one client COPYs, from rows as they are."""
    seconds = 0.0
    with psycopg.connect(product.stores["PRICING_DATABASE_URL"], autocommit=True) as connection:
        for table in ("price_history", "price_sheets"):
            with connection.cursor().copy(f"COPY (TABLE {table} LIMIT {BLOCK}) TO STDOUT (FORMAT BINARY)") as out:
                some = b"".join(out)
            connection.execute(f"CREATE TABLE bench (LIKE {table})")
            began = time.perf_counter()
            with connection.cursor().copy("COPY bench FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(some[:COPY_HEAD])
                for _ in range(rows // BLOCK):
                    copy.write(some[COPY_HEAD:-COPY_END])
                copy.write(some[-COPY_END:])
            seconds += time.perf_counter() - began
            connection.execute("DROP TABLE bench")
    return rows // BLOCK * BLOCK / seconds


def cached(product: Product, rows: int) -> float:
    """Slots a second that one client sets, a thousand at a time, from slots as they are."""
    with redis.Redis.from_url(product.stores["PRICING_CACHE_URL"]) as client:
        slots = client.mget(list(islice(client.scan_iter("price:*", count=1000), 1000)))
        batches = [dict(zip((f"bench:{n}" for n in range(at, rows)), slots, strict=False))
                   for at in range(0, rows, len(slots))]  # fmt: skip
        began = time.perf_counter()
        for batch in batches:
            client.mset(batch)
        seconds = time.perf_counter() - began
        for batch in batches:
            client.unlink(*batch)
    return rows / seconds
