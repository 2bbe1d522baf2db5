"""Stores that hang, die or flap: a known price is still answered, and soon after the outage it is fresh again.

Frozen means SIGSTOP: connections stay open and are accepted, and nobody answers, which is worse than death.
"""

import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import httpx
import psutil
import psycopg
import pytest

from tests.support.shop import IMPATIENT, Shop, problem, shop_of_its_own
from tests.support.system import PRICING, environment
from tests.support.waiting import eventually

ENV = IMPATIENT | {"PRICING_CACHE_TTL_S": "1", "PRICING_LOG_LEVEL": "warning"}
LONGEST_S = 4.0
"""No answer takes longer: the cache's patience and the hard limit of a load are 3.25 s."""
RECOVERY_S = 5.0
BUSY_S = 60.0
"""For what the issue sets no limit to: programs that start again, events that are applied."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """A system of its own, whose prices are fresh for a second."""
    with shop_of_its_own("outages", env=ENV) as shop:
        yield shop


@pytest.fixture(autouse=True)
def well_before(shop: Shop) -> None:
    eventually(lambda: ready(shop) == "ready", BUSY_S)
    shop.reconnect()


def ready(shop: Shop) -> str:
    with shop.fresh_client() as http:
        status: str = http.get("/readyz").json()["status"]
        return status


def tree(shop: Shop, name: str) -> list[psutil.Process]:
    parent = psutil.Process(shop.system.pids()[name])
    return [parent, *parent.children(recursive=True)]


@contextmanager
def frozen(shop: Shop, *names: str) -> Iterator[None]:
    """Servers with all their children, stopped the parent first so that none is born meanwhile."""
    stopped: list[psutil.Process] = []
    try:
        for name in names:
            psutil.Process(shop.system.pids()[name]).suspend()
            stopped += tree(shop, name)
            for process in tree(shop, name):
                process.suspend()
        yield
    finally:
        for process in stopped:
            process.resume()


@contextmanager
def killed(shop: Shop, *names: str) -> Iterator[None]:
    """Dead, until the supervisor may start them again."""
    pids = [shop.system.pids()[name] for name in names]
    supervisor = psutil.Process(shop.system.process.pid)
    supervisor.suspend()  # it would start them again at once
    try:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        yield
    finally:
        supervisor.resume()


def stores_answer(shop: Shop) -> bool:
    """Whether they have started again, where they died."""
    with psycopg.connect(shop.system.database_url, connect_timeout=2):
        return bool(shop.broker.ping() and shop.cache.ping())


Outage = Callable[[Shop], AbstractContextManager[None]]

OUTAGES: dict[str, Outage] = {
    "PostgreSQL hangs": lambda shop: frozen(shop, "postgres"),
    "PostgreSQL is dead": lambda shop: killed(shop, "postgres"),
    "the cache hangs": lambda shop: frozen(shop, "cache"),
    "the cache is dead": lambda shop: killed(shop, "cache"),
    "the broker hangs": lambda shop: frozen(shop, "broker"),
    "the broker is dead": lambda shop: killed(shop, "broker"),
    "all hang": lambda shop: frozen(shop, "postgres", "cache", "broker"),
}


class Client:
    """Asks over connections of its own, and remembers the longest answer."""

    def __init__(self, shop: Shop) -> None:
        self._http = shop.fresh_client()
        self.longest_s = 0.0

    def ask(self, product: str) -> httpx.Response:
        began = time.monotonic()
        response = self._http.post("/api/v1/price", json={"product_id": product, "user_location": "NY"})
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        return response

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def client(shop: Shop) -> Iterator[Client]:
    client = Client(shop)
    yield client
    client.close()


def known_everywhere(shop: Shop) -> str:
    """A new product that every API process has at hand."""
    product = shop.product()
    shop.happen("list_price.changed", product, "NY", data={"amount": 10})
    workers = 2
    for _ in range(20 * workers):  # connections are spread over the processes
        # Without a TLS context, which takes longer to make than all the rest.
        with httpx.Client(base_url=shop.system.url, verify=False) as other:
            assert other.post("/api/v1/price", json={"product_id": product, "user_location": "NY"}).is_success
    return product


def batch(shop: Shop, *products: str) -> httpx.Response:
    items = [{"product_id": product, "user_location": "NY"} for product in products]
    with shop.fresh_client() as http:
        return http.post("/api/v1/prices/batch", json={"items": items})


def statuses_in_a_batch(shop: Shop, *products: str) -> list[int]:
    answer = batch(shop, *products)
    assert answer.status_code == 200, answer.text
    return [item["status"] for item in answer.json()["items"]]


def metric(shop: Shop, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", shop.http.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def quotes(shop: Shop, source: str) -> float:
    return metric(shop, f'pricing_quotes_total{{source="{source}"}}')


def answers_during(client: Client, product: str, seconds: float) -> Sequence[httpx.Response]:
    """All answers from now until `seconds` later: long enough that everything at hand has expired."""
    until = time.monotonic() + seconds
    return [client.ask(product) for _ in itertools.takewhile(lambda _: time.monotonic() < until, itertools.count())]


@pytest.mark.parametrize("outage", list(OUTAGES))
def test_known_prices_are_answered_throughout_and_fresh_soon_after(shop: Shop, client: Client, outage: str) -> None:
    product, unknown = known_everywhere(shop), shop.product()
    stale_before = quotes(shop, "stale")
    with OUTAGES[outage](shop):
        answers = answers_during(client, product, 3)
        assert {answer.status_code for answer in answers} == {200}
        assert {str(answer.json()["final_price"]) for answer in answers} == {"10.0"}
        sources = {answer.json()["source"] for answer in answers}
        stale = [answer for answer in answers if answer.json()["source"] == "stale"]
        for answer in answers:
            assert ("age" in answer.headers) == (answer.json()["source"] == "stale")
        if "PostgreSQL" in outage or "all" in outage:
            assert stale, sources
            assert int(stale[-1].headers["age"]) >= 1
            refused = problem(client.ask(unknown), 503, "unavailable")
            assert refused["title"]
            assert int(client.ask(unknown).headers["retry-after"]) >= 1
            assert statuses_in_a_batch(shop, product, unknown) == [200, 503]
            problem(batch(shop, unknown), 503, "unavailable")
        else:
            assert client.ask(unknown).json()["source"] == "database"
    eventually(lambda: stores_answer(shop), BUSY_S)
    recovered = time.monotonic()
    eventually(lambda: client.ask(product).json()["source"] != "stale", BUSY_S)
    eventually(lambda: client.ask(unknown).status_code == 200, BUSY_S)
    assert time.monotonic() - recovered < RECOVERY_S
    assert client.longest_s < LONGEST_S
    if stale:
        eventually(lambda: quotes(shop, "stale") >= stale_before + len(stale))
    eventually(lambda: ready(shop) == "ready", BUSY_S)
    shop.happen("list_price.changed", product, "NY", data={"amount": 11})
    eventually(lambda: client.ask(product).json()["final_price"] == 11)


def test_a_database_that_dies_again_and_again_breaks_no_read(shop: Shop, client: Client) -> None:
    product = known_everywhere(shop)
    for _ in range(2):
        killed = shop.system.kill("postgres")
        answers = answers_during(client, product, 1.5)
        assert {answer.status_code for answer in answers} == {200}
        eventually(lambda: shop.system.pids().get("postgres", killed) != killed, BUSY_S)  # noqa: B023
    eventually(lambda: ready(shop) == "ready", BUSY_S)
    eventually(lambda: client.ask(product).json()["source"] != "stale", RECOVERY_S)
    assert client.longest_s < LONGEST_S


def test_readiness_is_answered_in_time_by_a_process_whose_stores_hang(shop: Shop) -> None:
    known_everywhere(shop)
    with frozen(shop, "postgres", "cache", "broker"), shop.fresh_client() as http:
        began = time.monotonic()
        answer = http.get("/readyz")
        assert time.monotonic() - began < LONGEST_S
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded"), "known prices are served"
        assert set(answer.json()["checks"].values()) == {"no answer within 2 s"}
        assert http.get("/healthz").status_code == 200
    eventually(lambda: ready(shop) == "ready", RECOVERY_S)


def test_what_only_the_database_has_is_refused_in_time_while_it_hangs(shop: Shop) -> None:
    product = known_everywhere(shop)

    def ask(_: int) -> tuple[httpx.Response, float]:
        with shop.fresh_client() as http:
            began = time.monotonic()
            return http.get(f"/api/v1/prices/{product}/history?location=NY"), time.monotonic() - began

    with frozen(shop, "postgres"), ThreadPoolExecutor(20) as clients:
        for answer, seconds in clients.map(ask, range(20)):  # more than there are connections
            problem(answer, 503, "unavailable")
            assert seconds < LONGEST_S  # one store timeout, and a busy machine
    eventually(lambda: len(shop.history(product)) == 1, RECOVERY_S)


def test_clearing_the_cache_clears_what_an_outage_would_be_answered_with(shop: Shop, client: Client) -> None:
    product = known_everywhere(shop)
    done = subprocess.run(
        [PRICING, "cache", "clear"],
        env=environment({"PRICING_DATA": str(shop.system.data)}),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    with frozen(shop, "postgres"):
        problem(client.ask(product), 503, "unavailable")
    count = re.fullmatch(r"([\d,]+) cached prices were forgotten; every API process forgets its own.\n", done.stdout)
    assert count, done.stdout
    assert int(count[1].replace(",", "")) >= 1
    eventually(lambda: client.ask(product).status_code == 200, RECOVERY_S)


def test_metrics_count_the_quick_answers_and_say_which_near_caches_are_bypassed(shop: Shop, client: Client) -> None:
    product = known_everywhere(shop)
    before = quotes(shop, "near_cache")
    assert {client.ask(product).json()["source"] for _ in range(20)} <= {"cache", "database"}
    eventually(lambda: quotes(shop, "near_cache") >= before + 15)
    eventually(lambda: metric(shop, "pricing_near_cache_bypassed") == 0)
    eventually(lambda: metric(shop, "pricing_near_cache_entries") >= 1)
    resets = metric(shop, "pricing_near_cache_resets_total")
    with frozen(shop, "cache"):
        eventually(lambda: metric(shop, "pricing_near_cache_bypassed") == 2)
    eventually(lambda: metric(shop, "pricing_near_cache_bypassed") == 0)
    assert metric(shop, "pricing_near_cache_resets_total") > resets


def test_an_api_process_that_begins_in_an_outage_serves_what_the_cache_knows(shop: Shop, client: Client) -> None:
    """And takes no other down with it: gunicorn gives up altogether where a worker does not start."""
    product = known_everywhere(shop)
    master = psutil.Process(shop.system.pids()["api"])
    with killed(shop, "postgres"):
        old = master.children()
        old[0].kill()
        eventually(lambda: len(set(master.children()) - set(old)) == 1, BUSY_S)
        old[1].kill()  # now whoever answers has begun after the database died

        def served() -> bool:
            with shop.fresh_client() as http:
                answer = http.post("/api/v1/price", json={"product_id": product, "user_location": "NY"})
                return answer.status_code == 200 and not set(master.children()) & set(old)

        eventually(served, BUSY_S)
        assert master.is_running()
    eventually(lambda: stores_answer(shop), BUSY_S)
