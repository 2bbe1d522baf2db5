"""One trace from the client's request to the price in the cache, read from the spans that were exported."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry import semconv

from tests.support.otlp import Collector, Span
from tests.support.shop import Shop
from tests.support.waiting import eventually


def traced(shop: Shop, collector: Collector, method: str, path: str, last: str, **request: Any) -> list[Span]:
    """Send a request as part of a client's sampled trace; every span of it, once the one named `last` is there."""
    trace_id, client_span = uuid4().hex, uuid4().hex[:16]
    headers = {"traceparent": f"00-{trace_id}-{client_span}-01"}
    response = shop.http.request(method, path, headers=headers, **request)
    assert response.is_success, response.text
    assert response.headers["traceparent"].split("-")[1] == trace_id
    eventually(lambda: last in {span.name for span in collector.spans(trace_id)}, timeout_s=20)

    def complete() -> list[Span]:
        """No span's parent is still on its way; the root's is the client's own."""
        spans = collector.spans(trace_id)
        ids = {span.span_id for span in spans} | {client_span}
        return spans if all(span.parent_id in ids for span in spans) else []

    spans = eventually(complete, timeout_s=20)
    assert [span.name for span in spans if span.parent_id == client_span] == [spans_root(spans).name]
    return spans


def spans_root(spans: list[Span]) -> Span:
    (root,) = [span for span in spans if span.kind == "SERVER"]
    return root


def one(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def line(spans: list[Span], name: str) -> list[str]:
    """Names of a span and of those above it; of several, of the one nearest to the root: a task whose turn is over
    queues the next one below itself."""
    by_id = {span.span_id: span for span in spans}

    def above(span: Span | None) -> Iterator[str]:
        while span is not None:
            yield f"{span.service.removeprefix('pricing-')}: {span.kind} {span.name}"
            span = by_id.get(span.parent_id)

    return min((list(above(span)) for span in spans if span.name == name), key=len)


def log(shop: Shop, process: str) -> list[dict[str, Any]]:
    lines = (shop.system.data / "logs" / f"{process}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def entries(shop: Shop, process: str, event: str, trace_id: str) -> list[dict[str, Any]]:
    return [entry for entry in log(shop, process) if (entry["event"], entry.get("trace_id")) == (event, trace_id)]


def test_an_event_is_one_trace_from_the_client_to_the_cache(shop: Shop, collector: Collector) -> None:
    product = shop.product()
    body = {"type": "list_price.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    spans = traced(shop, collector, "POST", "/api/v1/publish-market-event", "redis put prices", json=body)
    assert line(spans, "redis put prices") == [
        "worker: CLIENT redis put prices",
        "worker: CONSUMER apply events",
        "worker: CONSUMER process pricing.apply_events",
        "listener: PRODUCER send pricing.apply_events",
        "listener: CONSUMER receive market_events",
        "api: PRODUCER publish market_events",
        "api: SERVER POST /api/v1/publish-market-event",
    ]
    applying = one(spans, "apply events").span_id
    (transaction,) = [s for s in spans if s.name == "postgresql transaction" and s.parent_id == applying]
    assert (transaction.service, transaction.kind) == ("pricing-worker", "CLIENT")
    assert transaction.attributes["db.system.name"] == "postgresql"
    published = one(spans, "publish market_events")
    assert published.attributes["messaging.system"] == "redis"
    assert published.attributes["messaging.destination.name"] == "events"
    assert published.attributes["messaging.operation.type"] == "send"
    assert shop.causes(product) == [f"event:{published.attributes['messaging.message.id']}"]
    assert spans_root(spans).attributes["http.response.status_code"] == 202
    assert shop.costs("3.00", product)


def test_time_in_a_queue_is_a_gap_and_an_attribute(shop: Shop, collector: Collector) -> None:
    """While the lock of the product's scope is held, the second event waits; its own trace says so."""
    product = shop.product()
    shop.happen("list_price.changed", product, "NY", data={"amount": 1})
    held, body = uuid4().hex, {"type": "cost.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    with shop.another_connection() as connection:
        connection.execute(
            "SELECT 1 FROM list_prices JOIN products USING (product_key) WHERE product_id = %s FOR UPDATE", [product]
        )
        shop.publish("cost.changed", product, "NY", data={"amount": 2})
        waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pricing' AND wait_event_type = 'Lock'"
        eventually(lambda: shop.sql(waits), timeout_s=20)
        headers = {"traceparent": f"00-{held}-{uuid4().hex[:16]}-01"}
        shop.http.post("/api/v1/publish-market-event", json=body, headers=headers)
        eventually(lambda: {"process pricing.apply_events"} <= {span.name for span in collector.spans(held)}, 20)
    told = {"receive market_events", "apply events"}  # by two processes, each in its own time
    eventually(lambda: told <= {span.name for span in collector.spans(held)}, timeout_s=20)
    spans = collector.spans(held)
    assert [
        span.attributes["pricing.lock_left_to_holder"]
        for span in spans
        if span.name == "process pricing.apply_events" and "pricing.lock_left_to_holder" in span.attributes
    ] == [True]
    receiving, applying = one(spans, "receive market_events"), one(spans, "apply events")
    assert applying.attributes["pricing.queue_wait_ms"] > receiving.attributes["pricing.queue_wait_ms"] >= 0


def test_names_are_those_of_the_semantic_conventions_and_none_that_is_deprecated(
    shop: Shop, collector: Collector
) -> None:
    body = {"type": "cost.changed", "subject": shop.product(), "location": "NY", "data": {"amount": 3}}
    traced(shop, collector, "POST", "/api/v1/publish-market-event", "apply events", json=body)
    known: set[str] = set()
    for module in (file for part in semconv.__path__ for file in Path(part).rglob("*_attributes.py")):
        for name, said in re.findall(r'^\w+: Final = "([^"]+)"\n("""\n?.*)?', module.read_text(), re.M):
            if "Deprecated" not in said:
                known.add(name)
    assert len(known) > 500
    used = {name for span in collector.spans() for name in span.attributes}
    assert {name for name in used if not name.startswith(("pricing.", "celery."))} <= known
    kinds = {(span.name.partition(" ")[0], span.kind) for span in collector.spans()}
    assert {("publish", "PRODUCER"), ("receive", "CONSUMER"), ("send", "PRODUCER"), ("process", "CONSUMER")} <= kinds
    for span in collector.spans():
        if span.kind in ("PRODUCER", "CONSUMER"):
            needed = {
                f"messaging.{name}" for name in ("system", "operation.name", "operation.type", "destination.name")
            }
            assert needed <= set(span.attributes), span


def test_the_logs_of_every_process_carry_the_trace(shop: Shop, collector: Collector) -> None:
    product = shop.product()
    body = {"type": "cost.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    spans = traced(shop, collector, "POST", "/api/v1/publish-market-event", "process pricing.apply_events", json=body)
    for process, event in (("api", "request"), ("listener", "received"), ("worker", "task")):
        entry, *_ = eventually(lambda: entries(shop, process, event, spans[0].trace_id))  # noqa: B023
        assert (entry["process"], entry["level"]) == (process, "info")
        assert entry["timestamp"].endswith("Z")


def test_a_cache_miss_shows_what_it_asked(shop: Shop, collector: Collector) -> None:
    body = {"product_id": shop.product(), "user_location": "NY"}
    spans = traced(shop, collector, "POST", "/api/v1/price", "POST /api/v1/price", json=body)
    assert {(span.kind, span.name) for span in spans} == {
        ("SERVER", "POST /api/v1/price"),
        ("CLIENT", "postgresql read"),
        ("CLIENT", "redis put prices"),
    }


def test_a_changed_rule_is_one_trace_with_its_prices(shop: Shop, collector: Collector) -> None:
    product = shop.product()
    rule = {"promotion_id": f"t-{product}", "name": "T", "product_id": product, "kind": "percent", "value": 20}
    spans = traced(shop, collector, "POST", "/api/v1/promotions", "process pricing.apply_events", json=rule)
    names = line(spans, "process pricing.apply_events")
    assert names[-2:] == ["api: PRODUCER publish market_events", "api: SERVER POST /api/v1/promotions"]
    eventually(lambda: str(shop.price(product)) == "10.00")


def test_a_recalculation_is_one_trace_with_its_batches(shop: Shop, collector: Collector) -> None:
    spans = traced(shop, collector, "POST", "/api/v1/recalculate", "process pricing.recalculate")
    assert spans_root(spans).name == "POST /api/v1/recalculate"
    turns = {span.span_id for span in spans if span.name == "process pricing.recalculate"}
    assert [span for span in spans if span.parent_id in turns and span.name == "postgresql transaction"]


def test_an_envelope_of_another_service_is_continued(shop: Shop, collector: Collector) -> None:
    trace_id, product = uuid4().hex, shop.product()
    event = {
        "id": str(uuid4()),
        "type": "list_price.changed",
        "subject": product,
        "location": "NY",
        "data": {"amount": 4},
        "traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01",
    }
    shop.broker.publish("market_events", json.dumps(event))
    journey = {"take over market_events", "publish market_events", "receive market_events", "redis put prices"}
    eventually(lambda: journey <= {span.name for span in collector.spans(trace_id)}, timeout_s=20)


@pytest.mark.parametrize("flags", ["00", None])
def test_what_is_not_sampled_is_not_exported_but_has_an_id(shop: Shop, collector: Collector, flags: str | None) -> None:
    trace_id = uuid4().hex
    headers = {} if flags is None else {"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-{flags}"}
    response = shop.http.get("/api/v1/prices/nothing?location=NY", headers=headers)
    answered = response.json()["trace_id"]
    assert response.headers["traceparent"].split("-")[1] == answered
    assert flags is None or answered == trace_id
    # A sampled request after it: once that has arrived, this one would have, too.
    traced(shop, collector, "GET", f"/api/v1/prices/{shop.product()}?location=NY", "GET /api/v1/prices/{product_id}")
    assert collector.spans(answered) == []


def test_logs_are_json_from_the_first_line_to_the_last(shop: Shop) -> None:
    """Warnings of other people's programs aside, such as Celery's about running as root."""
    for process in ("api", "listener", "worker"):
        entries = log(shop, process)
        assert {"process", "event", "level", "logger", "timestamp"} <= set.intersection(*map(set, entries))
        (settings,) = [entry for entry in entries if entry["event"] == "settings"][:1]
        assert settings["database_url"] == "**********"
    api = (shop.system.data / "logs" / "api.log").read_text().splitlines()
    assert all(line.startswith("{") for line in api)
    assert {"gunicorn.error", "uvicorn.error"} <= {entry["logger"] for entry in log(shop, "api")}


def test_the_batch_that_a_sampled_request_is_recorded_in_links_to_it_up_to_the_sink(
    shop: Shop, collector: Collector
) -> None:
    trace_id = uuid4().hex
    shop.http.get("/healthz", headers={"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01"})

    def linking(name: str, to: str) -> list[Span]:
        """Spans of this name that are in that trace or link to it."""
        return [
            span
            for span in collector.spans()
            if span.name == name and (span.trace_id == to or to in {linked for linked, _ in span.links})
        ]

    (publishing,) = eventually(lambda: linking("publish telemetry", trace_id), timeout_s=20)
    request = spans_root(collector.spans(trace_id))
    assert (trace_id, request.span_id) in publishing.links
    assert (publishing.kind, publishing.parent_id) == ("PRODUCER", "")
    assert publishing.attributes["messaging.destination.name"] == "telemetry"
    assert publishing.attributes["pricing.telemetry_to"] == "stream"
    eventually(lambda: linking("write telemetry to postgresql", publishing.trace_id), timeout_s=20)
