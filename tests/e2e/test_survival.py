"""Any one process may die between the 202 and the effect: the event is applied all the same, and once."""

import os
import signal
from collections.abc import Callable
from uuid import uuid4

import psutil
import pytest

from tests.support.holding import nothing_commits, someone_waits
from tests.support.shop import Shop
from tests.support.waiting import eventually

RESTART_S = 90
"""A busy machine takes long to import Python programs."""


def kill(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.send_signal(signal.SIGKILL)


def process(shop: Shop, name: str) -> psutil.Process:
    return psutil.Process(shop.system.pids()[name])


def celery_children(shop: Shop) -> None:
    kill(process(shop, "worker").children())


def celery_parent(shop: Shop) -> None:
    """And its children, whom the supervisor ends before it starts a new one."""
    killed = shop.system.kill("worker")
    eventually(lambda: shop.system.pids().get("worker", killed) != killed, RESTART_S)


def listener(shop: Shop) -> None:
    killed = shop.system.kill("listener")
    eventually(lambda: shop.system.pids().get("listener", killed) != killed, RESTART_S)


def gunicorn_workers(shop: Shop) -> None:
    kill(process(shop, "api").children())


def effects(shop: Shop, event_id: str) -> int:
    """How often an event was processed, from the table that its transaction writes."""
    count: int = shop.sql("SELECT count(*) FROM processed_events WHERE event_id = %s", event_id)[0][0]
    return count


@pytest.mark.parametrize("dies", [celery_children, celery_parent, listener, gunicorn_workers])
def test_an_event_outlives_a_process_that_dies_while_it_is_being_applied(
    shop: Shop, dies: Callable[[Shop], None]
) -> None:
    product = shop.product()
    with nothing_commits(shop, product):
        event_id = shop.publish("list_price.changed", product, "NY", data={"amount": 5})
        eventually(lambda: someone_waits(shop), RESTART_S)
        dies(shop)
    shop.settle(RESTART_S)
    assert shop.costs("5.00", product)
    assert shop.causes(product) == [f"event:{event_id}"]
    assert effects(shop, event_id) == 1


@pytest.mark.parametrize("store", ["broker", "cache"])
def test_workers_outlive_the_death_of_redis_with_an_event_in_their_hands(shop: Shop, store: str) -> None:
    """Nor is that a failure of the event."""
    product = shop.product()
    workers = {worker.pid for worker in process(shop, "worker").children()} | {shop.system.pids()["worker"]}
    with nothing_commits(shop, product):
        event_id = shop.publish("list_price.changed", product, "NY", data={"amount": 8})
        eventually(lambda: someone_waits(shop), RESTART_S)
        killed = shop.system.kill(store)
        eventually(lambda: shop.system.pids().get(store, killed) != killed, RESTART_S)
        eventually(lambda: shop.broker.ping() and shop.cache.ping(), RESTART_S)
    shop.settle(RESTART_S)
    assert shop.costs("8.00", product)
    assert shop.causes(product) == [f"event:{event_id}"]
    assert effects(shop, event_id) == 1
    assert {worker.pid for worker in process(shop, "worker").children()} | {shop.system.pids()["worker"]} == workers
    assert shop.broker.hgetall("events:failures") == {}


def test_events_published_while_nobody_listens_are_applied_when_somebody_does_again(shop: Shop) -> None:
    products = [shop.product() for _ in range(5)]
    shop.system.kill("listener")
    for product in products:
        shop.publish("list_price.changed", product, "NY", data={"amount": 6})
    shop.settle(RESTART_S)
    assert all(shop.costs("6.00", product) for product in products)
    assert [len(shop.history(product)) for product in products] == [1] * 5


def test_an_event_waits_for_workers_longer_than_all_its_attempts(shop: Shop) -> None:
    product = shop.product()
    workers = [process(shop, "worker"), *process(shop, "worker").children()]
    for worker in workers:
        worker.suspend()
    try:
        event_id = shop.publish("list_price.changed", product, "NY", data={"amount": 7})

        def deliveries() -> int:
            entries = shop.broker.xpending_range("events", "repricing", "-", "+", 10)
            return max((int(entry["times_delivered"]) for entry in entries), default=0)

        eventually(lambda: deliveries() > 6, RESTART_S)
    finally:
        for worker in workers:
            worker.resume()
    shop.settle(RESTART_S)
    assert shop.costs("7.00", product)
    assert shop.causes(product) == [f"event:{event_id}"]
    assert not [letter for letter in shop.dead_letters() if event_id in letter["event"]]


def test_a_poisonous_event_is_set_aside_and_takes_no_other_with_it(shop: Shop) -> None:
    """It fails whoever applies it, for a reason that nobody foresaw."""
    product, poison = shop.product(), f"poison-{uuid4().hex}"
    shop.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'unforeseen'; END $$;"
        "CREATE TRIGGER poison BEFORE INSERT ON processed_events"
        " FOR EACH ROW WHEN (NEW.event_id LIKE 'poison-%') EXECUTE FUNCTION fail()"
    )
    try:
        with shop.broker.pipeline(transaction=True) as pipeline:
            for event_id, amount in ((poison, 1), (f"good-{product}", 2)):
                event = (
                    f'{{"id": "{event_id}", "type": "list_price.changed", "subject": "{product}",'
                    f' "location": "NY", "data": {{"amount": {amount}}}}}'
                )
                pipeline.xadd("events", {"event": event})
            pipeline.execute()
        shop.settle(RESTART_S)
    finally:
        shop.sql("DROP TRIGGER poison ON processed_events; DROP FUNCTION fail()")
    (letter,) = [letter for letter in shop.dead_letters() if poison in letter["event"]]
    assert (letter["reason"], letter["attempts"]) == ("5 attempts failed", "5")
    assert shop.causes(product) == [f"event:good-{product}"]
    assert shop.costs("2.00", product)
    assert effects(shop, poison) == 0


def test_a_dead_gunicorn_worker_is_replaced_while_the_other_answers(shop: Shop) -> None:
    api = process(shop, "api")
    before = {child.pid for child in api.children()}
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    product = shop.product()
    with shop.fresh_client() as client:
        # The kernel may hand this connection only to the one that lives.
        eventually(lambda: client.get(f"/api/v1/prices/{product}?location=NY").status_code == 200)
    eventually(lambda: len({child.pid for child in api.children()} - before) == 1, RESTART_S)
