"""The doorbell only saves time: without it events are found all the same, and whoever rings it is heard once."""

import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psutil
import pytest

from tests.support.proxy import Proxy, proxy_to
from tests.support.shop import Shop
from tests.support.system import Copy
from tests.support.waiting import eventually

FOUND_S = 1.0
"""How soon an event is found where nobody rings."""

ROUNDS = 8
STARTS_S = 60.0


@pytest.fixture
def proxy(shop: Shop) -> Iterator[Proxy]:
    with proxy_to(urlsplit(shop.system.broker_url).port or 0) as proxy:
        yield proxy


def hearing(shop: Shop) -> int:
    """How many listeners are on the channel."""
    ((_, count),) = shop.broker.pubsub_numsub("market_events")
    return int(count)


@contextmanager
def more_listeners(shop: Shop, count: int, port: int | None = None) -> Iterator[None]:
    """Beside that of `pricing up`; with `port`, that is where they find Redis."""
    url = urlsplit(shop.system.broker_url)
    at = url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{port or url.port}")
    changes = {"PRICING_BROKER_URL": urlunsplit(at)}
    original = psutil.Process(shop.system.pids()["listener"])
    copies = [Copy(original, changes, shop.system.data / "logs" / f"listener {n}.log") for n in range(count)]
    before = hearing(shop)
    try:
        for copy in copies:
            copy.tend()
        eventually(lambda: hearing(shop) == before + count, STARTS_S)
        yield
    finally:
        for copy in copies:
            copy.stop()
        eventually(lambda: hearing(shop) == before, STARTS_S)


@contextmanager
def only_listener(shop: Shop, proxy: Proxy) -> Iterator[None]:
    """One whose way to Redis is the proxy; that of `pricing up` is stopped, with nothing in its hands."""
    with more_listeners(shop, 1, proxy.port):
        shop.settle()
        original = psutil.Process(shop.system.pids()["listener"])
        original.suspend()
        try:
            yield
        finally:
            original.resume()


def seconds_until_found(shop: Shop) -> float:
    """From the publish of an event until a listener has read it."""
    product = shop.product()
    shop.settle()
    began = time.monotonic()
    shop.publish("list_price.changed", product, "NY", data={"amount": 5})
    newest = shop.broker.xinfo_stream("events")["last-generated-id"]

    def found() -> bool:
        (group,) = shop.broker.xinfo_groups("events")
        return bool(group["last-delivered-id"] == newest)

    eventually(found)
    seconds = time.monotonic() - began
    shop.settle()
    return seconds


def say(shop: Shop, message: str) -> int:
    """Publish straight to the channel, as another service does; how many heard it."""
    return int(shop.broker.publish("market_events", message))


def price_message(shop: Shop) -> tuple[str, str]:
    """A new event's id, and the event as JSON."""
    event_id = uuid4().hex
    event = {"id": event_id, "type": "list_price.changed", "subject": shop.product(), "location": "NY"}
    return event_id, json.dumps(event | {"data": {"amount": 3}})


def is_taken_over(shop: Shop) -> bool:
    """Whether somebody hears the channel: a message on it becomes an event, soon."""
    event_id, message = price_message(shop)
    say(shop, message)
    try:
        return bool(eventually(lambda: shop.broker.exists(f"event:{event_id}"), 3))
    except AssertionError:
        return False


@pytest.mark.parametrize("how", ["swallow", "refuse"])
def test_events_are_found_within_a_second_while_nobody_rings(shop: Shop, proxy: Proxy, how: str) -> None:
    """The subscription is half-open, or is refused again and again; the listener's other connection works."""
    with only_listener(shop, proxy):
        rung = [seconds_until_found(shop) for _ in range(ROUNDS)]
        getattr(proxy, how)(b"SUBSCRIBE")
        assert not is_taken_over(shop), "the channel is still heard"
        silent = [seconds_until_found(shop) for _ in range(ROUNDS)]
        busy = max(rung)  # what this machine adds just now
        assert statistics.median(silent) <= FOUND_S + statistics.median(rung)
        assert max(silent) <= FOUND_S + 2 * busy
        proxy.heal()
        eventually(lambda: is_taken_over(shop), STARTS_S)


def test_what_three_listeners_hear_is_one_event(shop: Shop) -> None:
    with more_listeners(shop, 2):
        said = dict(price_message(shop) for _ in range(20))
        assert {say(shop, message) for message in itertools.chain(said.values(), said.values())} == {3}
        eventually(lambda: all(shop.broker.exists(f"event:{event_id}") for event_id in said))
        shop.settle()
        processed = shop.sql("SELECT event_id FROM processed_events WHERE event_id = ANY(%s)", list(said))
        assert {event_id for (event_id,) in processed} == said.keys()
        causes = Counter(cause for (cause,) in shop.sql("SELECT cause FROM price_history"))
        assert {causes[f"event:{event_id}"] for event_id in said} == {1}


def test_what_three_listeners_cannot_read_is_one_dead_letter(shop: Shop) -> None:
    said = [f"{form} {uuid4().hex}" for form in ("no json", '{"type": "gossip"}', "[1]") for _ in range(5)]

    def letters() -> list[dict[str, str]]:
        return [one for one in shop.dead_letters() if one["event"] in said]

    with more_listeners(shop, 2):
        assert {say(shop, message) for message in said} == {3}
        eventually(lambda: len(letters()) >= len(said))
    assert is_taken_over(shop)  # all have heard everything: two have ended, and the third has heard this after it
    assert Counter(one["event"] for one in letters()) == Counter(said)
    assert all(one["reason"] for one in letters())
