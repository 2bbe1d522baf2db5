"""Events: accepted once, applied once, in order, by whatever way they came in."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.support.shop import Shop, paths, prices
from tests.support.waiting import eventually

PUBLISH = "/api/v1/publish-market-event"


def envelope(type_: str, subject: str, location: str = "NY", **event: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "type": type_, "source": "/test", "subject": subject, "location": location, **event}


def add(shop: Shop, event: dict[str, Any], stream_id: str = "*") -> str:
    """Put an event into the stream by hand, as a redelivery or another service would; its stream id."""
    added: str = shop.broker.xadd("events", {"event": json.dumps(event)}, id=stream_id)
    return added


def letters_about(shop: Shop, event_id: str) -> list[dict[str, str]]:
    return [letter for letter in shop.dead_letters() if event_id in letter["event"]]


def processed(shop: Shop, event_id: str) -> int:
    count: int = shop.sql("SELECT count(*) FROM processed_events WHERE event_id = %s", event_id)[0][0]
    return count


def with_policy(shop: Shop, product: str, **policy: Any) -> str:
    """Give the product a policy in New York; the event's id."""
    body = {"policy_id": f"p-{product}", "name": "P", "product_id": product, "location": "NY", **policy}
    return shop.happen("policy.changed", product, data={"policy": body})


@pytest.mark.parametrize(
    ("policy", "type_", "data", "expected"),
    [
        ({"kind": "list"}, "list_price.changed", {"amount": 15.5}, "15.50"),
        ({"kind": "cost_plus", "rate_percent": 25}, "cost.changed", {"amount": 8}, "10.00"),
        ({"kind": "competitor", "undercut_amount": 0.01}, "competitor_price.changed", {"amount": 11}, "10.99"),
        ({"kind": "market", "rate_percent": 50}, "demand.changed", {"index": 1.4}, "15.00"),
        ({"kind": "markdown", "rate_percent": 40, "stock_threshold": 50}, "stock.changed", {"quantity": 50}, "7.50"),
    ],
)
def test_a_signal_changes_the_price_that_its_policy_makes_of_it(
    shop: Shop, policy: dict[str, Any], type_: str, data: dict[str, Any], expected: str
) -> None:
    product = shop.product()
    with_policy(shop, product, **policy)
    assert shop.costs("12.50", product)
    event_id = shop.happen(type_, product, "NY", data=data)
    assert str(shop.price(product)) == expected
    assert shop.quote(product)["source"] == "cache"
    assert shop.causes(product)[-1] == f"event:{event_id}"
    assert shop.costs("12.50", product, "LA")


def test_rules_come_and_go_as_events(shop: Shop) -> None:
    product = shop.product()
    with_policy(shop, product, kind="list", floor=20)
    assert shop.costs("20.00", product)
    removed = shop.happen("policy.changed", product, data={"removed": f"p-{product}"})
    assert shop.costs("12.50", product)
    assert shop.causes(product)[-1] == f"event:{removed}"
    promotion = {"promotion_id": f"e-{product}", "name": "E", "product_id": product, "kind": "percent", "value": 20}
    shop.happen("promotion.changed", product, data={"promotion": promotion})
    assert shop.costs("10.00", product)
    assert shop.http.get(f"/api/v1/promotions/e-{product}").json()["value"] == 20
    shop.happen("promotion.changed", product, data={"removed": f"e-{product}"})
    assert shop.costs("12.50", product)
    assert shop.http.get(f"/api/v1/promotions/e-{product}").status_code == 404


def test_an_event_may_concern_a_category_or_every_place_of_a_currency(shop: Shop) -> None:
    category = f"Events {uuid4().hex}"
    first, second = (shop.product({"NY": 100, "LA": 100, "TYO": 100}, category=category) for _ in range(2))
    shop.happen("list_price.changed", category, "NY", data={"amount": 3})
    assert shop.costs("3.00", first)
    assert shop.costs("3.00", second)
    assert shop.costs("1.00", first, "LA")
    shop.happen("list_price.changed", first, "*", data={"amount": 4, "currency": "USD"})
    for location, expected in (("NY", "4.00"), ("LA", "4.00"), ("TYO", "100")):
        assert shop.costs(expected, first, location)


def test_the_answer_says_where_the_event_went(shop: Shop) -> None:
    product = shop.product()
    event = {"type": "cost.changed", "subject": product, "location": "NY", "data": {"amount": 1}}
    with shop.recording() as events:
        response = shop.http.post(PUBLISH, json=event)
    assert response.status_code == 202
    answer = response.json()
    assert (answer["status"], answer["channel"]) == ("accepted", "market_events")
    assert answer["trace_id"] in response.headers["traceparent"]
    (stored,) = [event for event in events if event["id"] == answer["event_id"]]
    assert (stored["subject"], stored["data"]) == (product, {"amount": 1})
    assert answer["trace_id"] in stored["traceparent"]
    assert datetime.fromisoformat(stored["time"]) <= datetime.now(UTC)
    shop.settle()


def test_an_empty_body_recalculates_everything(shop: Shop) -> None:
    product = shop.product()
    shop.price(product)
    shop.sql(
        "UPDATE list_prices SET amount = 999 WHERE product_key ="
        " (SELECT product_key FROM products WHERE product_id = %s)",
        product,
    )
    task_id = shop.http.post(PUBLISH).json()["event_id"]
    assert shop.task(task_id)["state"] == "succeeded"
    assert shop.costs("9.99", product)
    assert shop.causes(product) == [f"event:{task_id}"]


def test_a_recalculation_reports_its_progress(shop: Shop) -> None:
    products = [shop.product() for _ in range(3)]
    response = shop.http.post("/api/v1/recalculate", headers={"Idempotency-Key": "recalculate once"})
    assert response.status_code == 202
    task_id = response.json()["task_id"]
    assert response.headers["location"] == f"/api/v1/tasks/{task_id}"
    task = shop.task(task_id)
    (total,) = shop.sql("SELECT count(*) FROM list_prices")[0]
    assert (task["state"], task["done"], task["total"], task["error"]) == ("succeeded", total, total, None)
    assert task["changed"] >= 2 * len(products)
    assert all(shop.causes(product) == [f"event:{task_id}"] for product in products)
    again = shop.http.post("/api/v1/recalculate", headers={"Idempotency-Key": "recalculate once"})
    assert again.json()["task_id"] == task_id
    second = shop.task(shop.http.post("/api/v1/recalculate").json()["task_id"])
    assert (second["done"], second["changed"]) == (total, 0)
    assert shop.http.get("/api/v1/tasks/none").status_code == 404


def test_an_event_that_was_no_recalculation_is_no_task(shop: Shop) -> None:
    event_id = shop.happen("cost.changed", shop.product(), "NY", data={"amount": 1})
    assert shop.http.get(f"/api/v1/tasks/{event_id}").status_code == 404


def test_the_bare_word_on_the_channel_recalculates_everything_once(shop: Shop) -> None:
    product = shop.product()
    before = {task for (task,) in shop.sql("SELECT task_id FROM tasks")}
    for _ in range(2):
        assert shop.broker.publish("market_events", "Recalculate_Triggered_v1") >= 1

    def tasks() -> set[str]:
        return {task for (task,) in shop.sql("SELECT task_id FROM tasks")} - before

    (task_id,) = eventually(tasks)
    assert shop.task(task_id)["state"] == "succeeded"
    shop.settle()
    assert tasks() == {task_id}
    assert shop.causes(product) == [f"event:{task_id}"]


def test_an_envelope_on_the_channel_is_taken_over_once(shop: Shop) -> None:
    product = shop.product()
    event = envelope("list_price.changed", product, data={"amount": 7})
    for _ in range(3):
        shop.broker.publish("market_events", json.dumps(event))
    eventually(lambda: shop.causes(product) == [f"event:{event['id']}"])
    shop.settle()
    assert shop.costs("7.00", product)
    assert processed(shop, event["id"]) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("no json {unique}", "JSON"),
        ('["{unique}"]', "object"),
        ('{{"id": "{unique}", "type": "gossip"}}', "type"),
        ('{{"id": "{unique}", "type": "cost.changed", "subject": "x"}}', "data.amount"),
        ('{{"id": "{unique}", "type": "cost.changed", "data": {{"amount": -1}}}}', "data.amount"),
        ('{{"type": "recalculate", "source": "{unique}"}}', "id"),
    ],
)
def test_a_malformed_message_on_the_channel_is_set_aside_with_the_reason(shop: Shop, message: str, reason: str) -> None:
    unique = uuid4().hex
    shop.broker.publish("market_events", message.format(unique=unique))
    (letter,) = eventually(lambda: letters_about(shop, unique))
    assert letter["event"] == message.format(unique=unique)
    assert reason in letter["reason"]


def test_a_malformed_entry_in_the_stream_is_set_aside_and_acknowledged(shop: Shop) -> None:
    unique = uuid4().hex
    stream_ids = [
        shop.broker.xadd("events", {"event": f"garbage {unique}"}),
        shop.broker.xadd("events", {"something": unique}),
    ]
    shop.settle()
    letters = [letter for letter in shop.dead_letters() if letter.get("stream_id") in stream_ids]
    assert [letter["stream_id"] for letter in letters] == stream_ids
    product = shop.product()
    shop.happen("list_price.changed", product, "NY", data={"amount": 2})
    assert shop.costs("2.00", product)


def test_an_event_for_what_is_unknown_is_set_aside_and_acknowledged(shop: Shop) -> None:
    product = shop.product()
    for event in (
        envelope("cost.changed", f"no-{uuid4().hex}", data={"amount": 1}),
        envelope("cost.changed", product, "nowhere", data={"amount": 1}),
        envelope("cost.changed", product, data={"amount": 1.005}),
        envelope("list_price.changed", product, "*", data={"amount": 1, "currency": "EUR"}),
        envelope("cost.changed", product, "TYO", data={"amount": 1, "currency": "USD"}),
    ):
        shop.happen(**{"type_": event.pop("type")}, **event)
        letters = letters_about(shop, event["id"])
        if event["location"] == "*":  # no location has euros: nothing to do, and nothing wrong
            assert letters == []
        else:
            assert len(letters) == 1
            assert letters[0]["reason"]
            assert processed(shop, event["id"]) == 0
    assert shop.costs("12.50", product)


def test_one_refused_event_does_not_hold_up_the_others(shop: Shop) -> None:
    product = shop.product()
    with shop.broker.pipeline() as pipeline:
        for event in (
            envelope("list_price.changed", product, data={"amount": 5}),
            envelope("list_price.changed", product, data={"amount": 5.001}),
            envelope("list_price.changed", product, data={"amount": 6}),
        ):
            pipeline.xadd("events", {"event": json.dumps(event)})
        pipeline.execute()
    shop.settle()
    assert shop.costs("6.00", product)
    assert len(letters_about(shop, product)) == 1


def test_a_repeated_id_has_one_effect(shop: Shop) -> None:
    product = shop.product()
    event = envelope("list_price.changed", product, data={"amount": 4})
    answers = [shop.http.post(PUBLISH, json=event).json()["event_id"] for _ in range(3)]
    assert answers == [event["id"]] * 3
    shop.settle()
    assert shop.causes(product) == [f"event:{event['id']}"]
    assert processed(shop, event["id"]) == 1


def test_a_repeated_idempotency_key_has_one_effect(shop: Shop) -> None:
    product = shop.product()
    body = {"type": "list_price.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    key = {"Idempotency-Key": f"key of {product}"}
    ids = {shop.http.post(PUBLISH, json=body, headers=key).json()["event_id"] for _ in range(3)}
    (event_id,) = ids
    shop.settle()
    other = shop.http.post(PUBLISH, json=body, headers={"Idempotency-Key": "another"}).json()["event_id"]
    assert other != event_id
    shop.settle()
    assert shop.causes(product) == [f"event:{event_id}"], "the other one changed nothing, so it is no version"
    assert processed(shop, event_id) == 1


def test_a_redelivered_event_changes_nothing(shop: Shop) -> None:
    product = shop.product()
    event = envelope("list_price.changed", product, data={"amount": 5})
    add(shop, event)
    shop.settle()
    shop.happen("list_price.changed", product, "NY", data={"amount": 6})
    add(shop, event)
    shop.settle()
    assert shop.costs("6.00", product)
    assert prices(shop.history(product)) == ["6.00", "5.00"]
    assert processed(shop, event["id"]) == 1


def test_an_older_event_never_overwrites_a_newer_signal(shop: Shop) -> None:
    """The older one was delivered, but its task was lost: it is applied after the newer one."""
    product = shop.product()
    group = shop.broker.xinfo_groups("events")[0]
    newest = group["last-delivered-id"]
    ms = int(newest.partition("-")[0])
    older = envelope("list_price.changed", product, data={"amount": 1})
    # Read by a consumer that died with it: an id that the group has passed cannot be read again, only claimed.
    with shop.broker.pipeline(transaction=True) as pipeline:
        pipeline.xadd("events", {"event": json.dumps(older)}, id=f"{ms + 1}-0")
        pipeline.xreadgroup("repricing", "a dead consumer", {"events": ">"}, count=10)
        stream_id = pipeline.execute()[0]
    newer = envelope("list_price.changed", product, data={"amount": 2})
    assert add(shop, newer) > stream_id
    eventually(lambda: processed(shop, newer["id"]))
    assert processed(shop, older["id"]) == 0
    shop.settle()
    assert processed(shop, older["id"]) == 1
    assert shop.costs("2.00", product)
    assert prices(shop.history(product)) == ["2.00"]


def test_an_entry_is_acknowledged_only_after_its_effect_is_committed(shop: Shop) -> None:
    product = shop.product()
    key = shop.sql("SELECT product_key FROM products WHERE product_id = %s", product)[0][0]
    shop.sql("BEGIN")
    shop.sql("SELECT FROM list_prices WHERE product_key = %s FOR UPDATE", key)
    event_id = shop.publish("list_price.changed", product, "NY", data={"amount": 8})
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    eventually(lambda: shop.sql(blocked)[0][0])
    assert len(shop.unacknowledged()) == 1
    assert processed(shop, event_id) == 0
    shop.sql("COMMIT")
    shop.settle()
    assert processed(shop, event_id) == 1
    assert shop.costs("8.00", product)


def test_the_stream_is_trimmed_to_what_is_still_needed(shop: Shop) -> None:
    product = shop.product()
    for amount in range(1, 6):
        shop.publish("list_price.changed", product, "NY", data={"amount": amount})
    shop.settle()
    eventually(lambda: shop.broker.xlen("events") <= 1, timeout_s=20)
    shop.happen("list_price.changed", product, "NY", data={"amount": 9})
    assert shop.costs("9.00", product)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"type": "gossip"}, "body.type"),
        ({"type": None}, "body.type"),
        ({"data": {}}, "body.data.amount"),
        ({"data": {"amount": "much"}}, "body.data.amount"),
        ({"data": {"amount": 1, "colour": "red"}}, "body.data.colour"),
        ({"data": {"amount": 1, "currency": "XXX"}}, "body.data.currency"),
        ({"subject": ""}, "body.subject"),
        ({"location": "N Y"}, "body.location"),
        ({"time": "yesterday"}, "body.time"),
        ({"id": "two words"}, "body.id"),
        ({"traceparent": "00-1-2-3"}, "body.traceparent"),
        ({"colour": "red"}, "body.colour"),
    ],
)
def test_a_malformed_event_is_refused_with_its_field(shop: Shop, change: dict[str, Any], path: str) -> None:
    body = {"type": "cost.changed", "subject": "P-1", "location": "NY", "data": {"amount": 1}} | change
    assert paths(shop.http.post(PUBLISH, json=body)) == [path]
