"""Many events in one request: all accepted or none, once, and only while there is room for them."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from tests.support.shop import IMPATIENT, Shop, problem, shop_of_its_own
from tests.support.waiting import eventually

MANY = "/api/v1/events"
ONE = "/api/v1/publish-market-event"
NDJSON = {"Content-Type": "application/x-ndjson"}


def price_of(product: str, amount: float, **event: Any) -> dict[str, Any]:
    return {"type": "list_price.changed", "subject": product, "location": "NY", "data": {"amount": amount}, **event}


def lines(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def accepted(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    content: dict[str, Any] = response.json()
    assert content["status"] == "accepted"
    assert content["trace_id"] in response.headers["traceparent"]
    return content


def entries(shop: Shop) -> int:
    """How many events the stream has ever had."""
    added: int = shop.broker.xinfo_stream("events")["entries-added"]
    return added


@pytest.mark.parametrize("form", ["array", "ndjson"])
def test_many_events_are_accepted_and_applied_in_their_order(shop: Shop, form: str) -> None:
    products = [shop.product() for _ in range(3)]
    events = [price_of(product, amount) for amount in (3, 4, 5.5) for product in products]
    with shop.recording() as stored:
        if form == "array":
            answer = accepted(shop.http.post(MANY, json=events))
        else:
            answer = accepted(shop.http.post(MANY, content=lines(events), headers=NDJSON))
    assert (answer["accepted"], answer["duplicates"], len(set(answer["event_ids"]))) == (9, 0, 9)
    shop.settle()
    for product in products:
        assert shop.costs("5.50", product)
    assert [event["id"] for event in stored if event["id"] in answer["event_ids"]] == answer["event_ids"]
    assert {event["traceparent"].split("-")[1] for event in stored if event["id"] in answer["event_ids"]} == {
        answer["trace_id"]
    }


def test_a_retry_by_the_same_ids_changes_nothing(shop: Shop) -> None:
    product = shop.product()
    events = [price_of(product, amount, id=str(uuid4())) for amount in (1, 2, 3)]
    accepted(shop.http.post(ONE, json=events[1]) and shop.http.post(MANY, json=events[:2]))
    first, again = (accepted(shop.http.post(MANY, json=events)) for _ in range(2))
    assert (first["accepted"], first["duplicates"]) == (1, 2)
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    assert again["event_ids"] == [event["id"] for event in events]


def test_a_retry_by_the_same_key_changes_nothing_in_either_form(shop: Shop) -> None:
    product = shop.product()
    events = [price_of(product, 7), price_of(product, 8), price_of(product, 7)]
    key = {"Idempotency-Key": f"prices of {product}"}
    first = accepted(shop.http.post(MANY, json=events, headers=key))
    before = entries(shop)
    again = accepted(shop.http.post(MANY, content=lines(events), headers=key | NDJSON))
    assert (first["accepted"], again["accepted"], again["duplicates"]) == (3, 0, 3)
    assert again["event_ids"] == first["event_ids"]
    assert len(set(first["event_ids"])) == 3, "equal events at different places are different"
    assert entries(shop) == before
    other = accepted(shop.http.post(MANY, json=events, headers={"Idempotency-Key": f"other prices of {product}"}))
    assert other["accepted"] == 3
    shop.settle()
    assert shop.costs("7.00", product)


def test_one_malformed_event_refuses_all_and_every_error_says_where(shop: Shop) -> None:
    product = shop.product()
    sound = price_of(product, 1)
    events = [sound, sound | {"location": "N Y"}, sound, {"type": "gossip"}, sound | {"data": {"amount": -1, "x": 1}}]
    before = entries(shop)
    for response in (
        shop.http.post(MANY, json=events),
        shop.http.post(MANY, content=lines(events), headers=NDJSON),
    ):
        content = problem(response, 422, "invalid_input")
        assert "3 of 5 events" in content["detail"]
        assert [(error["index"], error["path"]) for error in content["errors"]] == [
            (1, "body.1.location"),
            (3, "body.3.type"),
            (4, "body.4.data.amount"),
            (4, "body.4.data.x"),
        ]
        assert content["error_count"] == 4
        assert all(error["message"] for error in content["errors"])
    assert entries(shop) == before


def test_of_very_many_errors_the_first_are_named_and_all_are_counted(shop: Shop) -> None:
    content = problem(shop.http.post(MANY, json=[{"type": "gossip"}] * 5_000), 422, "invalid_input")
    assert len(content["errors"]) == 100
    assert content["error_count"] == 5_000


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code", "says"),
    [
        (b"", "application/json", 400, "malformed_body", "character 0"),
        (b"[]", "application/json", 422, "invalid_input", "no event"),
        (b"\n \n", "application/x-ndjson", 422, "invalid_input", "no event"),
        (b'{"type":"recalculate"}', "application/json", 422, "invalid_input", "array"),
        (b'[{"type":"recalculate"}', "application/json", 400, "malformed_body", "character 23"),
        (b'{"type":"recalculate"}', "text/csv", 415, "unsupported_media_type", "application/x-ndjson"),
        (b'[{"type":"recalculate","subject":"\xff"}]', "application/json", 400, "malformed_body", "byte 34"),
        (b"[" * 100_000, "application/json", 400, "malformed_body", "deeply"),
        (b"1\n" * 10_001, "application/x-ndjson", 422, "invalid_input", "10,000"),
        (b"[" + b"1," * 10_000 + b"1]", "application/json", 422, "invalid_input", "10,000"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(
    shop: Shop, body: bytes, media_type: str, status: int, code: str, says: str
) -> None:
    before = entries(shop)
    response = shop.http.post(MANY, content=body, headers={"Content-Type": media_type})
    assert says in problem(response, status, code)["detail"]
    assert entries(shop) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"type":"recalculate"', "JSON"),
        (b'{"type":"recalculate","subject":"\xff"}', "JSON"),
        (b'{"type":"recalculate","data":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "recursion"),
        (b'{"type":"recalculate","subject":"' + b"x" * 1_100_000 + b'"}', "1,048,576 bytes"),
        (b'["type"]', "object"),
        (b'{"type":"recalculate","streamid":"1-1"}', "not permitted"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(shop: Shop, line: bytes, says: str) -> None:
    sound = b'{"type":"recalculate"}\n'
    before = entries(shop)
    response = shop.http.post(MANY, content=sound + b"\n" + line + b"\n" + sound, headers=NDJSON)
    (error,) = problem(response, 422, "invalid_input")["errors"]
    assert error["index"] == 2, "blank lines count"
    assert says in error["message"]
    assert entries(shop) == before


def test_an_id_that_is_there_twice_is_an_error(shop: Shop) -> None:
    event = price_of(shop.product(), 1, id=str(uuid4()))
    content = problem(shop.http.post(MANY, json=[event, event]), 422, "invalid_input")
    assert [(error["path"], "index 0" in error["message"]) for error in content["errors"]] == [("body.1.id", True)]


def test_a_compressed_body_is_not_taken_for_nonsense(shop: Shop) -> None:
    response = shop.http.post(MANY, content=b"\x1f\x8b", headers=NDJSON | {"Content-Encoding": "gzip"})
    assert "compressed" in problem(response, 415, "unsupported_media_type")["detail"]


def test_its_bodies_may_be_larger_than_others_up_to_a_limit(shop: Shop) -> None:
    product = shop.product()
    note = "n" * 180
    events = [price_of(product, 1, id=str(uuid4()), source=note) for _ in range(9_000)]
    body = lines(events)
    assert 2**21 < len(body) <= 5 * 2**20
    assert accepted(shop.http.post(MANY, content=body, headers=NDJSON))["accepted"] == 9_000
    too_large_for_one = shop.http.post(ONE, content=body[: 2**21], headers={"Content-Type": "application/json"})
    problem(too_large_for_one, 413, "body_too_large")
    shop.settle(120)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_by_its_length_or_as_soon_as_it_is_over(shop: Shop, declared: bool) -> None:
    before = entries(shop)
    how = "Content-Length: 6000000" if declared else "Transfer-Encoding: chunked"
    with sending(shop, how) as connection:
        if not declared:
            for size in (5_242_880, 1):  # and never an end
                connection.sendall(b"%x\r\n%b\r\n" % (size, b" " * size))
        answer = connection.makefile().read()
    assert answer.startswith("HTTP/1.1 413")
    assert "body_too_large" in answer
    assert entries(shop) == before


@pytest.mark.parametrize("how", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_client_that_goes_away_in_the_middle_has_published_nothing(shop: Shop, how: str) -> None:
    before, ended = entries(shop), ended_early(shop)
    with sending(shop, how) as connection:
        part = lines([price_of(shop.product(), 1)] * 1_000)
        connection.sendall(part if "Length" in how else b"%x\r\n%b\r\n" % (len(part), part))
    eventually(lambda: ended_early(shop) == ended + 1)
    assert entries(shop) == before


@contextmanager
def sending(shop: Shop, how: str) -> Iterator[socket.socket]:
    """A request whose body the test sends; the connection is closed at the end."""
    with socket.create_connection(("127.0.0.1", shop.system.port), timeout=10) as connection:
        head = f"POST {MANY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n{how}\r\n"
        connection.sendall(f"{head}X-API-Key: {shop.system.key}\r\n\r\n".encode())
        yield connection


def ended_early(shop: Shop) -> float:
    return counted(shop, f'pricing_http_request_duration_seconds_count{{method="POST",route="{MANY}",status="400"}}')


def counted(shop: Shop, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", shop.http.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def small_shop() -> Iterator[Shop]:
    """One whose backlog is soon full."""
    with shop_of_its_own("backlog", env=IMPATIENT | {"PRICING_MAX_BACKLOG_EVENTS": "20"}) as shop:
        yield shop


def test_a_full_backlog_refuses_new_events_until_it_is_worked_off(small_shop: Shop) -> None:
    shop, product = small_shop, small_shop.product()
    first = [price_of(product, amount, id=str(uuid4())) for amount in range(1, 25)]
    with nobody_listens(shop):
        assert accepted(shop.http.post(MANY, json=first))["accepted"] == 24, "the limit was not reached before"
        for path, body in (
            (MANY, [price_of(product, 30)]),
            (ONE, price_of(product, 30)),
            ("/api/v1/recalculate", None),
        ):
            response = shop.http.post(path, json=body)
            content = problem(response, 503, "overloaded")
            assert "24 events wait" in content["detail"]
            assert 5 <= int(response.headers["retry-after"]) < 10
        assert counted(shop, "pricing_events_refused_total") == 3
        assert accepted(shop.http.post(MANY, json=first))["duplicates"] == 24, "a retry is no new event"
        promotion = {"promotion_id": "off", "name": "Off", "kind": "percent", "value": 50, "product_id": product}
        assert shop.http.post("/api/v1/promotions", json=promotion).status_code == 201, "what came of itself goes in"
        shop.broker.publish("market_events", json.dumps(price_of(product, 40, id=str(uuid4()))))
    shop.settle()
    assert shop.costs("20.00", product)
    assert accepted(shop.http.post(MANY, json=[price_of(product, 30)]))["accepted"] == 1
    shop.settle()
    assert shop.costs("15.00", product)


@contextmanager
def nobody_listens(shop: Shop) -> Iterator[None]:
    listener = psutil.Process(shop.system.pids()["listener"])
    listener.suspend()
    try:
        yield
    finally:
        listener.resume()
