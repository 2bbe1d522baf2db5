"""A running system with a little shop in it, used from outside: over HTTP, Redis and SQL."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis

from app.adapters.task_queue import QUEUES
from tests.support.otlp import Collector
from tests.support.system import System, free_port, system_of_its_own
from tests.support.waiting import eventually

LOCATIONS = {
    "NY": ("USD", 840, "America/New_York"),
    "LA": ("USD", 840, "America/Los_Angeles"),
    "TYO": ("JPY", 392, "Asia/Tokyo"),
    "KWI": ("KWD", 414, "Asia/Kuwait"),
}

IMPATIENT = {"PRICING_RECLAIM_IDLE_S": "2", "PRICING_LOCK_TTL_S": "2"}
"""What makes a system notice within seconds that a process died with work in its hands."""


_AT_WORK = """
    SELECT pid, state, wait_event_type, wait_event, pg_blocking_pids(pid), now() - state_change, left(query, 99)
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()
"""


class Shop:
    """`http` asks the API; `broker`, `cache` and `sql` look behind it. Every test makes products of its own."""

    metrics_port: int
    """Where Prometheus finds the metrics."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.http = self.fresh_client()
        self.broker: Any = redis.Redis.from_url(system.broker_url, decode_responses=True)
        self.cache: Any = redis.Redis.from_url(system.cache_url, decode_responses=True)
        self._database = psycopg.connect(system.database_url, autocommit=True)
        self._numbers = itertools.count(1)
        for location, (currency, number, time_zone) in LOCATIONS.items():
            self.sql(
                "INSERT INTO locations (location, name, currency, currency_number, time_zone)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                location, location, currency, number, time_zone,
            )  # fmt: skip

    def close(self) -> None:
        self.http.close()
        self.broker.close()
        self.cache.close()
        self._database.close()

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        cursor = self._database.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def reconnect(self) -> None:
        """After a death of PostgreSQL."""
        self._database.close()
        self._database = psycopg.connect(self.system.database_url, autocommit=True)

    def another_connection(self) -> "psycopg.Connection[Any]":
        """One whose transaction ends, as a context, with a commit."""
        return psycopg.connect(self.system.database_url)

    def fresh_client(self) -> httpx.Client:
        """One without connections to processes that may be gone. It may do everything."""
        return httpx.Client(base_url=self.system.url, timeout=30, headers=self.system.with_key)

    def product(self, prices: Mapping[str, int] | None = None, category: str | None = None) -> str:
        """A new product with list prices in minor units by location; by default 12.50 in NY and in LA."""
        product_id = f"T-{next(self._numbers)}-{uuid4().hex[:6]}"
        name = category or f"Category of {product_id}"
        self.sql("INSERT INTO categories (name) VALUES (%s) ON CONFLICT DO NOTHING", name)
        self.sql(
            "INSERT INTO products (product_id, name, category_key)"
            " SELECT %s, %s, category_key FROM categories WHERE name = %s",
            product_id, product_id, name,
        )  # fmt: skip
        for location, amount in ({"NY": 1250, "LA": 1250} if prices is None else prices).items():
            self.sql(
                "INSERT INTO list_prices (product_key, location_key, amount, position)"
                " SELECT product_key, location_key, %s, 0 FROM products, locations"
                " WHERE product_id = %s AND location = %s",
                amount, product_id, location,
            )  # fmt: skip
        return product_id

    def ask(self, product_id: str, location: str = "NY", **context: Any) -> httpx.Response:
        return self.http.post("/api/v1/price", json={"product_id": product_id, "user_location": location, **context})

    def quote(self, product_id: str, location: str = "NY", **context: Any) -> dict[str, Any]:
        """The quote, its numbers as exact decimals."""
        response = self.ask(product_id, location, **context)
        assert response.status_code == 200, response.text
        return exactly(response)

    def price(self, product_id: str, location: str = "NY", **context: Any) -> Decimal:
        price: Decimal = self.quote(product_id, location, **context)["final_price"]
        return price

    def costs(self, expected: str, product_id: str, location: str = "NY", **context: Any) -> bool:
        """Whether the price is this: at once, or as soon as this API process has heard that another one changed it."""
        return eventually(lambda: str(self.price(product_id, location, **context)) == expected)

    def publish(self, type_: str, subject: str = "*", location: str = "*", **event: Any) -> str:
        """Publish an event; its id. `data` and other attributes of the envelope may be given."""
        body = {"type": type_, "subject": subject, "location": location, **event}
        response = self.http.post("/api/v1/publish-market-event", json=body)
        assert response.status_code == 202, response.text
        event_id: str = response.json()["event_id"]
        return event_id

    def happen(self, type_: str, subject: str = "*", location: str = "*", **event: Any) -> str:
        """Publish an event and wait until it has been applied and acknowledged."""
        event_id = self.publish(type_, subject, location, **event)
        self.settle()
        return event_id

    def settle(self, timeout_s: float = 30) -> None:
        """Wait until every entry of the stream is acknowledged: then its effect is committed and cached, and the
        API processes have been told."""
        try:
            eventually(lambda: not self.unacknowledged(), timeout_s)
        except AssertionError as error:
            error.add_note(self.situation())
            raise

    def situation(self) -> str:
        """What the processes said last, who waits for what in PostgreSQL, who holds what in Redis, and where the
        events are that were not acknowledged: what tells most is last, where a shortened report still has it."""
        said = []
        for name in ("listener", "jobs", "worker"):
            lines = (self.system.data / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
            said += [f"{name}:", *(line[:300] for line in lines[-8:])]
        said += ["PostgreSQL:", *map(str, self.sql(_AT_WORK))]
        kinds = ("inbox", "suspects", "trying", "lock", "hint")
        keys = [key for kind in kinds for key in self.broker.keys(f"{kind}:*")]
        said += [f"{key}: {self.broker.pttl(key)} ms" for key in keys]
        said += [f"queues: {[(queue, self.broker.llen(queue)) for queue in QUEUES]}"]
        said += [f"{key}: {self.broker.hgetall(key)}" for key in self.broker.keys("breaker:*")]
        said += [f"pending: {self.broker.xpending_range('events', 'repricing', '-', '+', 20)}"]
        return "\n".join(said)

    def unacknowledged(self) -> list[str]:
        """Ids of stream entries that nobody has acknowledged, whether read or not."""
        (group,) = (group for group in self.broker.xinfo_groups("events") if group["name"] == "repricing")
        pending = self.broker.xpending_range("events", "repricing", "-", "+", 1000)
        unread = self.broker.xrange("events", f"({group['last-delivered-id']}", "+")
        return [entry["message_id"] for entry in pending] + [stream_id for stream_id, _ in unread]

    @contextmanager
    def recording(self) -> Iterator[list[dict[str, Any]]]:
        """Every event that comes into the stream in this block, in its order, once the block is over. A group of our
        own, which has yet to read them, keeps them from being trimmed."""
        group, events = f"recording-{uuid4()}", list[dict[str, Any]]()
        self.broker.xgroup_create("events", group, "$")
        try:
            yield events
            for _, entries in self.broker.xreadgroup(group, "test", {"events": ">"}):
                events += [json.loads(fields["event"]) for _, fields in entries]
        finally:
            self.broker.xgroup_destroy("events", group)

    def history(self, product_id: str, location: str = "NY") -> list[dict[str, Any]]:
        """Every version, newest first."""
        response = self.http.get(f"/api/v1/prices/{product_id}/history", params={"location": location})
        assert response.status_code == 200, response.text
        versions: list[dict[str, Any]] = exactly(response)["versions"]
        return versions

    def causes(self, product_id: str, location: str = "NY") -> list[str]:
        """Why each version was, oldest first."""
        return [version["cause"] for version in reversed(self.history(product_id, location))]

    def dead_letters(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.broker.xrange("events:dead")]

    def task(self, task_id: str, timeout_s: float = 30) -> dict[str, Any]:
        """A task's last state, once it has ended."""

        def ended() -> dict[str, Any] | None:
            task: dict[str, Any] = self.http.get(f"/api/v1/tasks/{task_id}").json()
            return task if task["state"] in ("succeeded", "failed") else None

        answer = eventually(ended, timeout_s)
        assert answer is not None
        return answer


def exactly(response: httpx.Response) -> Any:
    """The body with every number as it was written: 12.50 is not 12.5 here."""
    return json.loads(response.content, parse_float=Decimal, parse_int=Decimal)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document that an error is answered with; nothing in it is from inside the service."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = response.json()
    assert (content["status"], content["code"]) == (status, code)
    assert content["title"]
    assert content["detail"]
    assert len(content["trace_id"]) == 32
    for inside in ("Traceback", 'File "', "psycopg", "sqlalchemy"):
        assert inside not in response.text
    return content


def paths(response: httpx.Response) -> list[str]:
    """Which fields a 422 names."""
    return [error["path"] for error in problem(response, 422, "invalid_input")["errors"]]


def prices(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(version["everyone_price"]) for version in versions]


@contextmanager
def shop_of_its_own(name: str, env: Mapping[str, str] = IMPATIENT) -> Iterator[Shop]:
    """One in a system of its own, with these settings."""
    with system_of_its_own(name, "--catalog", "none", env=env) as system:
        shop = Shop(system)
        try:
            yield shop
        finally:
            shop.close()


@pytest.fixture(scope="session")
def shop(collector: Collector) -> Iterator[Shop]:
    """One system for all tests of prices, rules, events, deaths and traces; its spans go to `collector`."""
    metrics_port = free_port()
    env = IMPATIENT | {
        "PRICING_OTLP_ENDPOINT": collector.url,
        "PRICING_TRACE_SAMPLE_RATIO": "0",
        "PRICING_METRICS_PORT": str(metrics_port),
    }
    with shop_of_its_own("shop", env=env) as shop:
        shop.metrics_port = metrics_port
        yield shop
