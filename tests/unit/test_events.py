"""Envelopes from outside: accepted, or refused with the path of what is wrong."""

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.events import DemandData, EventType, MoneyData, StockData, decode_event, encode_event
from app.errors import MalformedEvent

AMOUNT = {"amount": 12.9}
PROMOTION = {"promotion_id": "p", "name": "An offer", "kind": "percent", "value": 10}
SOUND: dict[str, dict[str, Any]] = {
    "list_price.changed": AMOUNT,
    "cost.changed": AMOUNT | {"currency": "EUR"},
    "competitor_price.changed": {"amount": "0"},
    "demand.changed": {"index": 1.2},
    "stock.changed": {"quantity": 3},
    "promotion.changed": {"promotion": PROMOTION},
    "policy.changed": {"removed": "p", "scopes": [{"category": "Dairy"}, {"product_id": "P-1", "location": "NY"}]},
    "recalculate": {},
}


def envelope(type_: str = "stock.changed", **fields: Any) -> dict[str, Any]:
    return {"id": "e-1", "type": type_, "subject": "P-1", "location": "NY", "data": SOUND[type_]} | fields


def refused(message: bytes | str) -> str:
    with pytest.raises(MalformedEvent) as refusal:
        decode_event(message)
    return str(refusal.value)


@pytest.mark.parametrize("type_", EventType)
def test_every_type_of_event_is_accepted_and_survives_json(type_: EventType) -> None:
    fields = {
        "source": "/shop", "subject": "P-1", "location": "NY", "time": "2024-05-01T10:00:00+02:00",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip
    event = decode_event(json.dumps(envelope(type_) | fields))
    assert event.type is type_
    assert decode_event(encode_event(event)) == event


def test_an_event_without_subject_or_location_is_about_everything() -> None:
    event = decode_event('{"id": "e-1", "type": "recalculate"}')
    assert (event.subject, event.location) == ("*", "*")


@given(st.decimals(0, 10**8, places=4))
def test_an_amount_in_an_event_is_exact(amount: Decimal) -> None:
    for written in (f"{amount:f}", f'"{amount:f}"'):
        event = decode_event(
            json.dumps(envelope("cost.changed")).replace(json.dumps(SOUND["cost.changed"]), f'{{"amount": {written}}}')
        )
        data = event.typed_data()
        assert isinstance(data, MoneyData)
        assert data.amount == amount
        assert decode_event(encode_event(event)).typed_data() == data


@given(st.decimals(0, 10, places=4), st.integers(0, 10**12))
def test_an_index_and_a_stock_are_exact(index: Decimal, quantity: int) -> None:
    demand = decode_event(json.dumps(envelope("demand.changed", data={"index": float(index)}))).typed_data()
    stock = decode_event(json.dumps(envelope(data={"quantity": quantity}))).typed_data()
    assert (demand, stock) == (DemandData(index=index), StockData(quantity=quantity))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"id": None}, "id: "),
        ({"id": "a b"}, "id: "),
        ({"type": "price.guessed"}, "type: "),
        ({"source": ""}, "source: "),
        ({"source": "a\x00b"}, "source: "),
        ({"subject": ""}, "subject: "),
        ({"subject": "x" * 201}, "subject: "),
        ({"location": "**"}, "location: "),
        ({"location": ""}, "location: "),
        ({"time": "2024-05-01T10:00:00"}, "time: "),
        ({"time": "yesterday"}, "time: "),
        ({"traceparent": "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"}, "traceparent: "),
        ({"specversion": "1.0"}, "specversion: "),
        ({"data": []}, "data: "),
        ({"data": {}}, "data.quantity: Field required"),
        ({"data": {"quantity": -1}}, "data.quantity: "),
        ({"data": {"quantity": 1.5}}, "data.quantity: "),
        ({"data": {"quantity": 1, "colour": "red"}}, "data.colour: "),
        ({"type": "demand.changed", "data": {"index": 1.23456}}, "data.index: "),
        ({"type": "demand.changed", "data": {"index": 11}}, "data.index: "),
        ({"type": "cost.changed", "data": {"amount": -1}}, "data.amount: "),
        ({"type": "cost.changed", "data": {"amount": "NaN"}}, "data.amount: "),
        ({"type": "cost.changed", "data": {"amount": True}}, "data.amount: "),
        ({"type": "cost.changed", "data": {"amount": 1, "currency": "ZZZ"}}, "data.currency: "),
        ({"type": "recalculate", "data": {"hard": True}}, "data.hard: "),
        (
            {"type": "promotion.changed", "data": {"promotion": PROMOTION | {"currency": "XXX"}}},
            "data.promotion.currency: ",
        ),
        ({"type": "promotion.changed", "data": {"promotion": PROMOTION | {"value": 101}}}, "data.promotion: "),
        ({"type": "policy.changed", "data": {"scopes": [{}, {"location": "no where"}]}}, "data.scopes.1.location: "),
    ],
)
def test_a_malformed_event_is_refused_with_the_path_of_the_field(fields: dict[str, Any], problem: str) -> None:
    message = refused(json.dumps(envelope() | fields))
    assert message.startswith(problem)
    assert "; " not in message


def test_every_wrong_field_is_named_at_once() -> None:
    message = refused(json.dumps(envelope(id="", location="", data={"quantity": -1})))
    assert [problem.split(":")[0] for problem in message.split("; ")] == ["id", "location", "data.quantity"]


def test_an_event_without_the_data_that_its_type_needs_is_refused() -> None:
    assert refused('{"id": "e-1", "type": "cost.changed"}') == "data.amount: Field required"


@pytest.mark.parametrize(
    "message",
    ["", "null", "[]", '"text"', "{", b"\xff", '{"id": "\ud800"}', r'{"id": "\ud800"}', '{"id":' * 5_000, "9" * 5_000],
)
def test_what_is_no_json_object_is_refused(message: bytes | str) -> None:
    assert refused(message).startswith("event: ")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def almost_sound(draw: st.DrawFn) -> dict[str, Any]:
    """A sound envelope in which one value, anywhere, is something else."""
    event = json.loads(json.dumps(envelope(draw(st.sampled_from(sorted(SOUND))), subject="P-1", time=None)))
    holder = event
    while True:
        key = draw(st.sampled_from(sorted(holder)) if isinstance(holder, dict) else st.integers(0, len(holder) - 1))
        if not (isinstance(holder[key], dict | list) and holder[key] and draw(st.booleans())):
            holder[key] = draw(anything)
            return event  # type: ignore[no-any-return]
        holder = holder[key]


@settings(max_examples=250)
@given(almost_sound())
def test_nothing_in_an_envelope_breaks_the_decoder(event: dict[str, Any]) -> None:
    with suppress(MalformedEvent):
        decoded = decode_event(json.dumps(event))
        assert decode_event(encode_event(decoded)).typed_data() == decoded.typed_data()


@settings(max_examples=100)
@given(st.binary() | st.text() | anything.map(json.dumps))
def test_noise_is_refused_and_nothing_worse(message: bytes | str) -> None:
    refused(message)


@pytest.mark.parametrize("missing", ["subject", "location"])
def test_a_signal_of_everything_has_to_be_meant(missing: str) -> None:
    given = envelope("cost.changed")
    del given[missing]
    assert "needs a subject and a location" in refused(json.dumps(given))
    assert getattr(decode_event(json.dumps(given | {missing: "*"})), missing) == "*"
