"""Who puts load on the system: readers, markets, a storm of events, a sale, and whoever has everything recalculated.

Whatever they are answered is checked (checks.py), under the names that record.py knows.
"""

import random
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import gevent
from locust import FastHttpUser, between, constant_pacing, task

from loadtests import checks
from loadtests.checks import Answer, Freshness, Outdated
from loadtests.popularity import Draw, Row
from loadtests.record import READS, STALENESS

PUBLISH = "/api/v1/publish-market-event"
WATCH_PAUSE_S = 0.002
"""Between two looks at a price that is to change: finer than what is measured, and no load of its own."""
SALE_S, SALE_PERCENT = 4.0, 60
RECALCULATED_WITHIN_S = 120.0


@dataclass(frozen=True)
class World:
    """What the users of one process share, in `environment.world` once it is there. `watched` are rows of which nobody
    else changes the prices: a market takes one, and puts it back. `stormy` are others."""

    draw: Draw
    watched: deque[Row]
    stormy: list[Row]
    freshness: Freshness
    key: dict[str, str]
    """The header that shows an API key, for whoever changes something."""


class Shopper(FastHttpUser):
    """Whoever asks for prices, and checks the answers."""

    abstract = True
    connection_timeout = network_timeout = 10.0

    def on_start(self) -> None:
        self.world: World = self.environment.world.get()

    def ask(self, row: Row, name: str = READS, late_ms: float = 0, **context: Any) -> Answer | None:
        """One quote; None where there was none, or it is wrong, which is a failure of the request then. It counts from
        when it was due, `late_ms` before it is sent."""
        question = {"product_id": row[0], "user_location": row[1], **context}
        sent_at = time.time()
        with self.client.post(READS, json=question, name=name, catch_response=True) as response:
            response.request_meta["response_time"] += late_ms
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
                return None
            quote = checks.decode(response.content)
            if problem := checks.wrong(quote, question) or checks.inexact(quote):
                response.failure(f"{problem}: {response.text} to {question}"[:500])
                return None
            if old := self.world.freshness.outdated(quote, sent_at, float(response.headers.get("age", 0))):
                response.failure(Outdated(f"older than the limit: {old}"))
                return None
            return quote

    def publish(self, event: dict[str, Any]) -> bool:
        """Whether the event was accepted."""
        event = {"id": f"load-{uuid4().hex}", "source": "/loadtests", **event}
        with self.client.post(PUBLISH, json=event, headers=self.world.key, catch_response=True) as response:
            if response.status_code == 202 and response.json()["event_id"] == event["id"]:
                return True
            response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
            return False

    def watch(self, row: Row, shown: Any, since: float) -> None:
        """Ask until a quote of the row shows it, since a `time.perf_counter`; longer than the limit is a failure."""
        while True:
            quote = self.ask(row, name=f"{READS} (watching)")
            waited_s = time.perf_counter() - since
            if quote is not None and shown(quote):
                return self.check(STALENESS, waited_s * 1000)
            if waited_s > self.world.freshness.bound_s:
                return self.check(STALENESS, waited_s * 1000, Outdated("no quote shows it within the limit"))
            gevent.sleep(WATCH_PAUSE_S)

    def check(self, name: str, ms: float, problem: Exception | None = None) -> None:
        """A measurement or a check that is no request, in Locust's figures; `ms` in milliseconds."""
        self.environment.events.request.fire(
            request_type="CHECK", name=name, response_time=ms, response_length=0, context={}, exception=problem
        )


class Reader(Shopper):
    """Asks at times that are fixed beforehand: who was answered late asks the next at once, and it counts as waiting
    since it was due. With a rate of 0 it asks as fast as it is answered."""

    def on_start(self) -> None:
        super().on_start()
        rate = self.environment.parsed_options.rate
        self.every_s = 1 / rate if rate else 0.0
        gevent.sleep(random.random() * self.every_s)
        self.due = time.perf_counter()

    def wait_time(self) -> float:
        now = time.perf_counter()
        self.due = self.due + self.every_s if self.every_s else now
        return max(0.0, self.due - now)

    def row(self) -> Row:
        return self.world.draw()

    @task(9)
    def quote(self) -> None:
        """Half of the customers are members, one in ten buys two."""
        quantity = 2 if random.random() < 0.1 else 1
        self.ask(self.row(), late_ms=self.late_ms(), is_prime_member=random.random() < 0.5, quantity=quantity)

    @task(1)
    def compare_segments(self) -> None:
        """A member never pays more than everyone does, for the same version of the same price."""
        row, late_ms = self.row(), self.late_ms()
        everyone = self.ask(row, late_ms=late_ms, is_prime_member=False)
        member = self.ask(row, is_prime_member=True)
        if everyone and member and checks.dearer_for_members(everyone, member):
            self.check("member <= everyone", 0, AssertionError(f"{row} is dearer for members"))

    def late_ms(self) -> float:
        return max(0.0, time.perf_counter() - self.due) * 1000


class BargainHunter(Reader):
    """Nine of ten ask for the one product that everybody asks for."""

    def row(self) -> Row:
        return self.world.draw.rows[0] if random.random() < 0.9 else self.world.draw()


class Market(Shopper):
    """Changes a list price now and then, and watches until quotes follow."""

    fixed_count = 2
    wait_time = between(0.5, 1.5)

    @task
    def change_a_price(self) -> None:
        row = self.world.watched.popleft()
        try:
            if quote := self.ask(row, name=f"{READS} (watching)"):
                self.change(row, Decimal(quote["list_price"]))
        finally:
            self.world.watched.append(row)

    def change(self, row: Row, before: Decimal) -> None:
        amount = before + random.choice((-1, 1)) * Decimal(random.randint(1, 9)) / 100
        amount = amount if amount > 0 else before + 1
        began = time.perf_counter()
        event = {"type": "list_price.changed", "subject": row[0], "location": row[1], "data": {"amount": str(amount)}}
        if self.publish(event):
            self.watch(row, lambda quote: quote["list_price"] == amount, began)


class Sale(Shopper):
    """Reduces the most popular product for a few seconds, again and again, and watches it begin and end."""

    fixed_count = 1

    @task
    def hold_a_sale(self) -> None:
        row, sale = self.world.draw.rows[0], f"load-{uuid4().hex}"
        ends = datetime.now(UTC) + timedelta(seconds=SALE_S)
        promotion = {
            "promotion_id": sale,
            "name": "Flash sale",
            "product_id": row[0],
            "location": row[1],
            "kind": "percent",
            "value": SALE_PERCENT,
            "stackable": False,
            "ends_at": ends.isoformat(),
        }

        def on(quote: Answer) -> bool:
            return any(step["rule"] == sale for step in quote["adjustments"])

        began = time.perf_counter()
        event = {"type": "promotion.changed", "subject": row[0], "location": row[1], "data": {"promotion": promotion}}
        if self.publish(event):
            self.watch(row, on, began)
            gevent.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
            self.watch(row, lambda quote: not on(quote), time.perf_counter())


class Storm(Shopper):
    """Publishes events in bulk, `--events` a second, about prices that no market watches."""

    fixed_count = 1
    wait_time = constant_pacing(0.5)

    @task
    def publish_many(self) -> None:
        count = max(1, round(self.environment.parsed_options.events * 0.5))
        events = [self.event(row) for row in random.choices(self.world.stormy, k=count)]
        with self.client.post("/api/v1/events", json=events, headers=self.world.key, catch_response=True) as response:
            if response.status_code != 202 or response.json()["accepted"] != count:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")

    def event(self, row: Row) -> dict[str, Any]:
        kind = random.choice(("list_price.changed", "cost.changed", "competitor_price.changed"))
        data = {"amount": str(Decimal(random.randint(100, 5000)) / 100)}
        return {"type": kind, "source": "/loadtests", "subject": row[0], "location": row[1], "data": data}


class Recalculation(Shopper):
    """Has every price recalculated, and again when that is done."""

    fixed_count = 1

    @task
    def recalculate(self) -> None:
        began = time.perf_counter()
        with self.client.post("/api/v1/recalculate", headers=self.world.key, catch_response=True) as response:
            if response.status_code != 202:
                response.failure(f"status {response.status_code}: {(response.text or '')[:200]}")
                return
            task_id = response.json()["task_id"]
        while (waited_s := time.perf_counter() - began) < RECALCULATED_WITHIN_S:
            with self.client.get(f"/api/v1/tasks/{task_id}", name="/api/v1/tasks/{task_id}") as response:
                state = response.json()["state"] if response.status_code == 200 else "unknown"
            if state in ("succeeded", "failed", "cancelled"):
                problem = None if state == "succeeded" else AssertionError(f"a recalculation has {state}")
                return self.check("recalculation", waited_s * 1000, problem)
            gevent.sleep(0.1)
        self.check("recalculation", waited_s * 1000, AssertionError(f"not done in {RECALCULATED_WITHIN_S:g} s"))
