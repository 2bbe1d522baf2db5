"""The exact bill: every answered request is recorded once, whoever is killed; what a killed process takes with it is
stated."""

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import redis

from tests.support.shop import IMPATIENT
from tests.support.system import PRICING, System, environment, system_of_its_own
from tests.support.victoriametrics import victoria_metrics
from tests.support.waiting import eventually

CLIENTS = 4
QUESTION = {"product_id": "P-100", "user_location": "NY", "is_prime_member": True}


class Customers:
    """Clients that ask for prices, each request with a name of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self.answered: Counter[str] = Counter()
        self.unanswered: set[str] = set()
        """Nobody knows whether these were answered: the connection broke."""
        self._threads = [threading.Thread(target=self._ask, args=[number]) for number in range(CLIENTS)]

    def _ask(self, number: int) -> None:
        asked = 0
        while not self._stopping.is_set():
            with httpx.Client(base_url=self._url, timeout=20) as client:
                while not self._stopping.is_set():
                    asked += 1
                    name = f"customer-{number}-{asked}"
                    path, method = ("/api/v1/price", "POST") if asked % 5 else ("/api/v1/nowhere", "GET")
                    try:
                        client.request(method, path, json=QUESTION, headers={"X-User-ID": name})
                    except httpx.TransportError:
                        self.unanswered.add(name)
                        break
                    self.answered[name] += 1

    @contextmanager
    def asking(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def more(self, count: int) -> None:
        """Until so many more have been answered."""
        before = self.answered.total()
        eventually(lambda: self.answered.total() >= before + count, timeout_s=60)


def children(system: System, name: str) -> list[psutil.Process]:
    return psutil.Process(system.pids()[name]).children()


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def bill(system: System) -> Counter[str]:
    with psycopg.connect(system.database_url) as connection:
        rows = connection.execute("SELECT user_id FROM request_records WHERE user_id LIKE 'customer-%%'")
        return Counter(name for (name,) in rows)


def settle(system: System) -> None:
    """Until all that was spilled is in the stream, all of that in PostgreSQL, and who was killed is known to be."""

    def settled() -> bool:
        if list((system.data / "telemetry").glob("*.spill")):
            return False
        with psycopg.connect(system.database_url) as connection:
            found = connection.execute("SELECT count(*) FROM record_sources WHERE ended_sequence IS NULL").fetchone()
        assert found is not None
        groups: Any = system_groups(system)
        return found[0] <= 2 and all(group["lag"] == 0 and group["pending"] == 0 for group in groups)

    eventually(settled, timeout_s=90)


def system_groups(system: System) -> Any:
    with redis.Redis.from_url(system.broker_url, decode_responses=True) as client:
        return client.xinfo_groups("telemetry")


def gaps(system: System) -> tuple[int, dict[str, Any]]:
    said = subprocess.run(
        [PRICING, "telemetry", "gaps", "--json"],
        env=environment({"PRICING_DATA": str(system.data)}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return said.returncode, json.loads(said.stdout)


def live_through_deaths(system: System) -> Customers:
    customers = Customers(system.url)
    with customers.asking():
        customers.more(300)
        for _ in range(2):
            kill(children(system, "api")[0])
            customers.more(300)
            for consumer in children(system, "jobs"):
                kill(consumer)
            customers.more(300)
    settle(system)
    return customers


@pytest.mark.parametrize("mode", ["buffered", "synchronous"])
def test_every_answered_request_is_billed_once_or_its_loss_is_stated(mode: str) -> None:
    with system_of_its_own(f"bill-{mode}", env={**IMPATIENT, "PRICING_TELEMETRY": mode}) as system:
        customers = live_through_deaths(system)
        code, stated = gaps(system)
        # What the living answered last has its 50 ms, too.
        eventually(lambda: len(customers.answered.keys() - bill(system).keys()) <= stated["missing"], timeout_s=20)
        billed = bill(system)
        lost = set(customers.answered) - set(billed)
        assert set(billed.values()) == {1}, "nobody pays twice"
        assert set(billed) <= set(customers.answered) | customers.unanswered
        assert code == (1 if stated["missing"] else 0)
        assert {item["where"] for item in stated["items"]} <= {"nowhere"}
        # Numbers were given to more than was answered only where a client could not tell.
        assert stated["missing"] <= len(lost) + len(customers.unanswered)
        assert all(item["ended"] for item in stated["items"]), "of processes that were killed"
        assert len(stated["items"]) <= 2, "one stretch for each, its last"
        if mode == "synchronous":
            assert lost == set()


@pytest.mark.parametrize("store", ["broker", "cache", "postgres"])
def test_a_store_that_dies_takes_no_record_with_it(store: str) -> None:
    with system_of_its_own(f"bill-{store}", env=IMPATIENT) as system:
        customers = Customers(system.url)
        with customers.asking():
            customers.more(200)
            for _ in range(2):
                eventually(lambda: system.kill(store), timeout_s=60)  # once it was started again
                customers.more(400)
        exact(system, customers)


def test_while_victoriametrics_is_away_bills_go_on_and_it_has_all_of_it_afterwards() -> None:
    with victoria_metrics() as victoria:
        env = {**IMPATIENT, "PRICING_VICTORIAMETRICS_URL": victoria.url}
        with system_of_its_own("bill-graphs", env=env) as system:
            customers = Customers(system.url)
            with customers.asking():
                customers.more(200)
                victoria.stop(signal.SIGKILL)
                customers.more(400)
                eventually(lambda: len(bill(system)) >= 500, timeout_s=60)
                victoria.start()
                customers.more(200)
            exact(system, customers)

            def drawn() -> bool:
                found = victoria.series('pricing_request_sent_bytes{user_id=~"customer-.*"}')
                return Counter({each["metric"]["user_id"]: len(each["values"]) for each in found}) == bill(system)

            eventually(drawn, timeout_s=30)


def exact(system: System, customers: Customers) -> None:
    """Every answered request is billed once, and nothing is missing."""
    eventually(lambda: not customers.answered.keys() - bill(system).keys(), timeout_s=90)
    settle(system)
    billed = bill(system)
    assert {name for name in billed if billed[name] > 1} == set()
    assert set(customers.answered) <= set(billed) <= set(customers.answered) | customers.unanswered
    assert gaps(system) == (0, {"missing": 0, "items": []})


def test_who_leaves_in_order_loses_nothing() -> None:
    with system_of_its_own("bill-leaving", env=IMPATIENT) as system:
        customers = Customers(system.url)
        with customers.asking():
            customers.more(300)
            os.kill(children(system, "api")[0].pid, signal.SIGTERM)
            customers.more(300)
            for consumer in children(system, "jobs"):
                os.kill(consumer.pid, signal.SIGTERM)
            customers.more(300)
        exact(system, customers)
