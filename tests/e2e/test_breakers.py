"""The breakers as an operator sees them, while a store is away and after."""

import subprocess

from tests.support.shop import Shop, shop_of_its_own
from tests.support.system import PRICING, environment
from tests.support.waiting import eventually


def pricing_breakers(shop: Shop, *options: str) -> subprocess.CompletedProcess[str]:
    env = environment({"PRICING_DATA": str(shop.system.data), "COLUMNS": "200"})
    return subprocess.run([PRICING, "breakers", *options], env=env, capture_output=True, text=True, timeout=60)


def state_of(shop: Shop, name: str) -> str:
    line = next(line for line in pricing_breakers(shop).stdout.splitlines() if line.strip().startswith(name))
    return line.split()[1]


def test_an_open_breaker_keeps_events_waiting_and_says_why_until_it_is_reset(shop: Shop) -> None:
    seconds, _ = shop.broker.time()
    shop.broker.hset(
        "breaker:postgresql",
        mapping={"state": "open", "until": (seconds + 3600) * 1000, "open_ms": 1000, "reason": "it is being mended"},
    )
    product = shop.product()
    shop.publish("list_price.changed", product, "NY", data={"amount": 8})
    assert state_of(shop, "postgresql") == "open"
    assert "it is being mended" in pricing_breakers(shop).stdout
    metric = 'pricing_breaker_state{breaker="postgresql"} 2.0'
    eventually(lambda: metric in shop.http.get("/metrics").text)
    assert shop.unacknowledged(), "nothing was applied meanwhile"
    assert pricing_breakers(shop, "--reset", "postgresql").returncode == 0
    assert state_of(shop, "postgresql") == "closed"
    shop.settle()
    assert shop.costs("8.00", product)


def test_a_breaker_that_is_not_there_is_named_with_those_that_are(shop: Shop) -> None:
    answer = pricing_breakers(shop, "--reset", "nothing")
    assert answer.returncode == 1
    assert "the names are postgresql, cache, apply_events" in answer.stderr


def test_many_events_that_are_refused_hold_up_what_can_be_applied_only_for_a_while() -> None:
    """So many that the breaker of the work opens, as it should where it is the catalogue that is missing."""
    with shop_of_its_own("refusals") as shop:
        product = shop.product()
        refused = [{"type": "cost.changed", "subject": "nobody's", "location": "NY", "data": {"amount": 1}}] * 60
        assert shop.http.post("/api/v1/events", json=refused).status_code == 202
        eventually(lambda: state_of(shop, "apply_events") == "open")
        assert "nobody's" in pricing_breakers(shop).stdout
        shop.publish("list_price.changed", product, "NY", data={"amount": 8})
        shop.settle(60)
        assert shop.costs("8.00", product)
        assert len(shop.dead_letters()) == len(refused)
        assert state_of(shop, "apply_events") == "closed"
