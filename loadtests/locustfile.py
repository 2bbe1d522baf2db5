"""Readers ask for prices and check every answer; markets publish events and wait to see the new price.

Which rules a reader's price followed is not known here, but every answer has to explain itself exactly, and
the same question never costs a member more. See README.md for how to run it.
"""

import json
import random
import time
from decimal import Decimal
from uuid import uuid4

from locust import FastHttpUser, between, events, stats, task

PRODUCTS = [f"P-{number}" for number in range(100, 1000)]
LOCATIONS = ("NY", "LA", "MIA")
VISIBLE_WITHIN_S = 5.0
"""From the 202 of an event to the first quote with its price; a full reclaim of a lost task takes longer."""

# Locust rounds to whole milliseconds below 100, and most quotes take less than a few: keep 0.01 ms.
stats.bucket_response_time = lambda ms: round(ms, 2) if ms < 100 else round(ms)


class Reader(FastHttpUser):
    """Asks as fast as it is answered."""

    weight = 20

    @task(9)
    def quote(self) -> None:
        self.ask(random.choice(PRODUCTS), random.choice(LOCATIONS), random.random() < 0.5)

    @task(1)
    def compare_segments(self) -> None:
        """A member never pays more than everyone does, for the same version of the same price."""
        product, location = random.choice(PRODUCTS), random.choice(LOCATIONS)
        everyone, member = (self.ask(product, location, is_member) for is_member in (False, True))
        comparable = everyone and member and everyone["version"] == member["version"]
        if comparable and member["final_price"] > everyone["final_price"]:
            report(self, "member <= everyone", 0, f"{product} at {location} is dearer for members")

    def ask(self, product: str, location: str, is_member: bool) -> dict | None:
        """One quote, checked; None where the request failed, which Locust then knows."""
        question = {"product_id": product, "user_location": location, "is_prime_member": is_member}
        with self.client.post("/api/v1/price", json=question, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return None
            quote = json.loads(response.content, parse_float=Decimal)
            if problem := wrong(quote, question):
                response.failure(problem)
                return None
            return quote


class Market(FastHttpUser):
    """Publishes a list price now and then, and waits until quotes follow."""

    weight = 1
    wait_time = between(1, 3)

    def on_start(self) -> None:
        self.location = random.choice(LOCATIONS)

    @task
    def change_a_price(self) -> None:
        product, amount = random.choice(PRODUCTS), Decimal(random.randrange(500, 5000)) / 100
        event = {
            "id": str(uuid4()),
            "type": "list_price.changed",
            "source": "/loadtest",
            "subject": product,
            "location": self.location,
            "data": {"amount": str(amount)},
        }
        began = time.perf_counter()
        with self.client.post("/api/v1/publish-market-event", json=event, catch_response=True) as response:
            if response.status_code != 202 or response.json()["event_id"] != event["id"]:
                response.failure(f"status {response.status_code}: {response.text[:200]}")
                return
        question = {"product_id": product, "user_location": self.location}
        while (waited := time.perf_counter() - began) < VISIBLE_WITHIN_S:
            with self.client.post("/api/v1/price", json=question, name="/api/v1/price (watching)") as response:
                if response.status_code == 200 and list_price(response.content) == amount:
                    report(self, "event to visible price", (time.perf_counter() - began) * 1000)
                    return
        report(self, "event to visible price", waited * 1000, f"not visible within {VISIBLE_WITHIN_S:g} s")


def wrong(quote: dict, question: dict) -> str | None:
    """What is wrong with a quote of one unit, or None. Amounts are exact decimals."""
    segment = "member" if question["is_prime_member"] else "everyone"
    asked = (question["product_id"], question["user_location"], segment, 1)
    if tuple(quote[name] for name in ("product_id", "location", "segment", "quantity")) != asked:
        return "the answer to another question"
    steps = sum((step["amount"] for step in quote["adjustments"]), Decimal(0))
    if quote["list_price"] + steps != quote["final_price"]:
        return "the adjustments do not add up to the price"
    if quote["total"] != quote["final_price"] or quote["final_price"] < 0:
        return "the total of one is not its price"
    if any(quote[name].as_tuple().exponent != -2 for name in ("list_price", "base_price", "final_price")):
        return "a price without exactly two decimals"
    if quote["source"] not in ("cache", "database"):
        return f"source {quote['source']!r}"
    return None


def list_price(content: bytes) -> Decimal:
    price: Decimal = json.loads(content, parse_float=Decimal)["list_price"]
    return price


def report(user: FastHttpUser, name: str, ms: float, problem: str | None = None) -> None:
    """A measurement or a check that is no request, in Locust's statistics; `ms` in milliseconds."""
    events.request.fire(
        request_type="CHECK",
        name=name,
        response_time=ms,
        response_length=0,
        context=user.context(),
        exception=AssertionError(problem) if problem else None,
    )
