"""From an event to its price: published over HTTP, read over HTTP, by clients that keep their connections."""

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from loadtests.bench.measures import Bench
from loadtests.bench.results import Result, result
from loadtests.bench.servers import Product
from loadtests.popularity import Row

RATE_PER_S = 1_000
BULK = 50
GIVE_UP_S = 30.0


def events(bench: Bench) -> Iterator[Result]:
    """One event until its price can be read: on an idle system, and beside 1,000 events a second."""
    rows = list(bench.counts)[:20_000]
    random.Random(1).shuffle(rows)
    probed, others = rows[:500], rows[500:]
    idle = probes(bench.product, probed, count=300, every_s=0.05)
    yield from judged("an event to its price, idle", idle, p50_ms=15, p99_ms=100)
    seconds = max(20.0, 10 * bench.seconds)
    publisher = threading.Thread(target=publish, args=(bench.product, others, seconds))
    publisher.start()
    busy = probes(bench.product, probed, count=int((seconds - 2) * 10), every_s=0.1)
    publisher.join()
    yield from judged(f"an event to its price, beside {RATE_PER_S:,} events/s", busy, p50_ms=None, p99_ms=1_000)
    yield result("until the last of them is applied", "s", [drained_s(bench)])


def judged(name: str, seen_ms: Sequence[float], p50_ms: float | None, p99_ms: float) -> Iterator[Result]:
    ordered = sorted(seen_ms)
    for percent, limit in ((50, p50_ms), (99, p99_ms)):
        value = ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
        target = None if limit is None else f"≤ {limit:,g}"
        holds = None if limit is None else lambda value, limit=limit: value <= limit
        yield result(f"{name}, p{percent}", "ms", [value], target=target, holds=holds)


def probes(server: Product, rows: Sequence[Row], count: int, every_s: float) -> list[float]:
    """Change one list price after the other, and ask until it is there; ms each took, from before the publish."""
    client = Client(server)
    seen: list[float] = []
    for n in range(count):
        product, location = rows[n % len(rows)]
        question = {"product_id": product, "user_location": location}
        amount = round(client.post("/api/v1/price", question)["list_price"] + random.choice((0.01, 0.02)), 2)
        due = time.perf_counter()
        client.post("/api/v1/publish-market-event", price_event(product, location, amount))
        while client.post("/api/v1/price", question)["list_price"] != amount:
            if time.perf_counter() - due > GIVE_UP_S:
                raise SystemExit(f"the price of {product} at {location} did not become {amount} in {GIVE_UP_S:g} s")
            time.sleep(0.0005)
        took = time.perf_counter() - due
        seen.append(took * 1000)
        time.sleep(max(0.0, every_s - took))
    return seen


def publish(server: Product, rows: Sequence[Row], seconds: float) -> None:
    """`RATE_PER_S` events, in bulks, at the pace of the clock."""
    client = Client(server)
    began = time.perf_counter()
    for n in range(int(seconds * RATE_PER_S / BULK)):
        time.sleep(max(0.0, began + n * BULK / RATE_PER_S - time.perf_counter()))
        chosen = random.choices(rows, k=BULK)
        client.post("/api/v1/events", [price_event(*row, round(random.uniform(1, 50), 2)) for row in chosen])


def price_event(product: str, location: str, amount: float) -> dict[str, Any]:
    return {"type": "list_price.changed", "subject": product, "location": location, "data": {"amount": amount}}


def drained_s(bench: Bench) -> float:
    """Seconds until nothing in the stream is unread or pending."""
    began = time.perf_counter()
    with redis.Redis.from_url(bench.product.stores["PRICING_BROKER_URL"]) as client:
        while True:
            (group,) = client.xinfo_groups("events")
            if not group["lag"] and not group["pending"]:
                return time.perf_counter() - began
            time.sleep(0.01)


class Client:
    """One connection that is kept."""

    def __init__(self, server: Product) -> None:
        self._headers = {"content-type": "application/json", **server.key}
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def post(self, path: str, body: Any) -> Any:
        self._connection.request("POST", path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise SystemExit(f"{path}: {response.status} {content[:300]!r}")
        return json.loads(content)
