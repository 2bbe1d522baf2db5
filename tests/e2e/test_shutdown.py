"""SIGTERM under load, to each process in turn and to all: no request fails, and no event is lost."""

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from tests.support.holding import nothing_commits, someone_waits
from tests.support.load import Load, load_on
from tests.support.shop import Shop, shop_of_its_own
from tests.support.system import System, still_running
from tests.support.waiting import eventually

DRAIN_S = 20
BUSY_S = 60
"""A busy machine takes long to import Python programs."""

ENV = {"PRICING_RECALCULATION_BATCH_SIZE": "20"}
READERS = (0.002, 0.01, 0.03, 0.1, 0.3, 0.6)
PUBLISHERS = (0.02, 0.1)
"""Seconds between an answer and the next request: some connections are hardly ever idle, others nearly always."""


@pytest.fixture(scope="module")
def house() -> Iterator[Shop]:
    """A shop of our own, whose processes come and go."""
    with shop_of_its_own("shutdown", env=ENV) as shop:
        yield shop


@contextmanager
def customers(shop: Shop) -> Iterator[Load]:
    """Everything is asked for and changes; in the end every accepted event has been applied, once."""
    products = [shop.product() for _ in range(20)]
    with load_on(shop.system, products, READERS, PUBLISHERS) as load:
        busy(load)
        yield load
        busy(load)
    check_ledger(shop, load)


def busy(load: Load) -> None:
    """Wait until much has been asked and some of it accepted, from now on."""
    asked, accepted = load.requests, len(load.accepted)
    eventually(lambda: load.requests > asked + 100 and len(load.accepted) > accepted + 10, BUSY_S)


def check_ledger(shop: Shop, load: Load) -> None:
    shop.settle(BUSY_S)
    ids = list(load.accepted)
    assert shop.sql("SELECT count(*) FROM processed_events WHERE event_id = ANY(%s)", ids) == [(len(ids),)]
    causes = [f"event:{event_id}" for event_id in ids]
    repeated = "SELECT cause FROM price_history WHERE cause = ANY(%s) GROUP BY cause HAVING count(*) > 1"
    assert shop.sql(repeated, causes) == []
    last: dict[str, int] = {}
    for product, amount in load.accepted.values():
        last[product] = max(amount, last.get(product, 0))
    assert all(shop.costs(f"{amount}.00", product) for product, amount in last.items())


def process(shop: Shop, name: str) -> psutil.Process:
    return psutil.Process(shop.system.pids()[name])


def end(processes: list[psutil.Process]) -> float:
    """Wait until they have ended, and say how many seconds that took."""
    began = time.monotonic()
    eventually(lambda: not still_running(processes), BUSY_S)
    return time.monotonic() - began


def replaced(shop: Shop, name: str, pid: int) -> None:
    eventually(lambda: shop.system.pids().get(name, pid) != pid, BUSY_S)


def locks_of(shop: Shop, processes: list[psutil.Process]) -> list[str]:
    """Locks that these have not freed."""
    pids = {str(process.pid) for process in processes}
    held = {name: shop.broker.get(name) for name in shop.broker.scan_iter("lock:*")}
    return [name for name, owner in held.items() if owner and owner.split(":")[1] in pids]


def test_an_api_worker_leaves_and_no_connection_is_cut(house: Shop) -> None:
    api = process(house, "api")
    with customers(house) as load:
        leaving = api.children()[:1]
        leaving[0].terminate()
        assert end(leaving) < DRAIN_S
        eventually(lambda: len(api.children()) == 2, BUSY_S)
    assert load.failed == []
    assert load.refused == 0


def test_a_reload_puts_new_processes_in_the_place_of_the_old_ones(house: Shop) -> None:
    api = process(house, "api")
    with customers(house) as load:
        leaving = api.children()
        api.send_signal(signal.SIGHUP)
        assert end(leaving) < DRAIN_S
        eventually(lambda: len(api.children()) == 2, BUSY_S)
    assert load.failed == []
    assert load.refused == 0


def test_the_api_says_that_it_leaves_and_answers_what_has_reached_it(house: Shop) -> None:
    """Also what waits for a store at that moment."""
    api = process(house, "api")
    with customers(house) as load:
        balancer = http.client.HTTPConnection("127.0.0.1", house.system.port, timeout=10)
        balancer.connect()
        balancer.auto_open = 0
        for store in (house.broker, house.cache):
            store.client_pause(1000, all=True)
        leaving = [api, *api.children()]
        api.terminate()
        eventually(lambda: readiness(balancer) == (503, "leaving", "close"))
        balancer.close()
        assert end(leaving) < DRAIN_S
        replaced(house, "api", api.pid)
        eventually(lambda: house.system.get("/readyz") == 200, BUSY_S)
    assert load.failed == []


def readiness(connection: http.client.HTTPConnection) -> tuple[int, str, str | None]:
    """Status, what it says, and what becomes of the connection."""
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    return response.status, json.loads(response.read())["status"], response.getheader("connection")


def test_a_second_signal_to_the_api_does_not_wait_for_requests(house: Shop) -> None:
    api = process(house, "api")
    leaving = [api, *api.children()]
    with request_in_hand(house):
        api.terminate()
        eventually(lambda: not answers(house.system.port))
        assert still_running(leaving) == leaving
        api.terminate()
        assert end(leaving) < 8
    replaced(house, "api", api.pid)
    eventually(lambda: house.system.get("/readyz") == 200, BUSY_S)


@contextmanager
def request_in_hand(shop: Shop) -> Iterator[None]:
    """A client that never comes to the end of what it asks."""
    with socket.create_connection(("127.0.0.1", shop.system.port)) as slow:
        slow.sendall(b"POST /api/v1/publish-market-event HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
        workers = process(shop, "api").children()
        eventually(lambda: any(slow.getsockname() in peers(worker) for worker in workers))
        yield


def peers(worker: psutil.Process) -> list[tuple[str, int]]:
    """Whose connections it has accepted."""
    return [tuple(connection.raddr) for connection in worker.net_connections("tcp4") if connection.raddr]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def parent(shop: Shop, name: str) -> list[psutil.Process]:
    return [process(shop, name), *process(shop, name).children()]


def child(shop: Shop, name: str) -> list[psutil.Process]:
    return process(shop, name).children()[:1]


@pytest.mark.parametrize(
    ("name", "which"), [("listener", parent), ("worker", parent), ("worker", child), ("jobs", parent)]
)
def test_a_process_behind_the_api_leaves_and_another_goes_on(
    house: Shop, name: str, which: Callable[[Shop, str], list[psutil.Process]]
) -> None:
    with customers(house) as load:
        leaving = which(house, name)
        leaving[0].terminate()
        assert end(leaving) < DRAIN_S
        assert locks_of(house, leaving) == []
    assert load.failed == []
    assert load.refused == 0


@pytest.mark.parametrize("which", [parent, child])
def test_a_worker_finishes_the_batch_in_hand(house: Shop, which: Callable[[Shop, str], list[psutil.Process]]) -> None:
    product = house.product()
    with nothing_commits(house, product):
        event_id = house.publish("list_price.changed", product, "NY", data={"amount": 3})
        eventually(lambda: someone_waits(house), BUSY_S)
        workers = parent(house, "worker")
        told = workers[:1] if which is parent else workers[1:]
        for worker in told:
            worker.terminate()
        assert someone_waits(house)
    assert end(told) < DRAIN_S
    assert is_applied_once(house, product, event_id)
    assert locks_of(house, workers) == []


def test_a_second_signal_breaks_the_batch_in_hand_off(house: Shop) -> None:
    """It is rolled back, its lock is free at once, and it counts as no failed attempt."""
    eventually(lambda: len(parent(house, "worker")) == 3)  # who left in the last test was replaced
    product = house.product()
    with nothing_commits(house, product):
        event_id = house.publish("list_price.changed", product, "NY", data={"amount": 3})
        eventually(lambda: someone_waits(house), BUSY_S)
        workers = parent(house, "worker")
        workers[0].terminate()
        eventually(lambda: not still_running(workers[1:2]) or not still_running(workers[2:]))
        assert someone_waits(house)
        workers[0].terminate()
        assert end(workers) < 5
        assert locks_of(house, workers) == []
    assert is_applied_once(house, product, event_id)


def is_applied_once(shop: Shop, product: str, event_id: str) -> bool:
    shop.settle(BUSY_S)
    failed = [failure for name in shop.broker.scan_iter("failures:*") for failure in shop.broker.hvals(name)]
    return shop.causes(product) == [f"event:{event_id}"] and failed == []


def test_a_recalculation_goes_on_where_a_worker_left_it(house: Shop) -> None:
    """It is told to go in its first batch of many; with that its turn is over."""
    products = [house.product({"LA": 100}) for _ in range(200)]
    with house.another_connection() as nobody_stores:
        nobody_stores.execute("LOCK TABLE price_history IN SHARE MODE")
        task_id = house.publish("recalculate")
        eventually(lambda: someone_waits(house), BUSY_S)
        leaving = parent(house, "jobs")
        leaving[0].terminate()
        eventually(lambda: len(still_running(leaving)) < len(leaving))
    assert end(leaving) < DRAIN_S
    assert locks_of(house, leaving) == []
    left = house.http.get(f"/api/v1/tasks/{task_id}").json()
    assert left["state"] == "running"
    assert 0 < left["done"] < left["total"]
    task = house.task(task_id, BUSY_S)
    assert (task["state"], task["parts_failed"], task["done"]) == ("succeeded", 0, task["total"])
    assert all(house.causes(product, "LA") == [f"event:{task_id}"] for product in products[::50])


def test_everything_leaves_and_what_was_accepted_is_applied_when_it_is_back(house: Shop) -> None:
    """The last one: the house is empty afterwards."""
    products = [house.product() for _ in range(20)]
    everything = house.system.tree()
    with load_on(house.system, products, READERS, PUBLISHERS) as load:
        busy(load)
        began = time.monotonic()
        assert house.system.stop() == 0
        assert time.monotonic() - began < DRAIN_S
    assert load.failed == []
    assert still_running(everything) == []
    assert "did not stop" not in house.system.said()

    with ExitStack() as stack:
        system = System(house.system.data, "--catalog", "none", port=house.system.port, env=ENV)
        stack.callback(system.stop)
        shop = Shop(system.wait_until_ready())
        stack.callback(shop.close)
        check_ledger(shop, load)
        with request_in_hand(shop):
            shop.system.process.terminate()
            eventually(lambda: not answers(shop.system.port))
            began = time.monotonic()
            assert shop.system.stop() == 0
            assert time.monotonic() - began < 10
