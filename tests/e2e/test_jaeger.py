"""What a developer sees in Jaeger: one event, one trace, every service, no span without its parent."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support.jaeger import Jaeger, jaeger  # noqa: F401 - a fixture
from tests.support.shop import IMPATIENT, Shop, shop_of_its_own
from tests.support.waiting import eventually

SERVICES = {"pricing-api", "pricing-listener", "pricing-worker"}


@pytest.fixture(scope="module")
def shop(jaeger: Jaeger) -> Iterator[Shop]:  # noqa: F811
    """A system of its own, which finds the Jaeger by its ports."""
    env = {"JAEGER_HTTP_PORT": str(jaeger.page), "JAEGER_OTLP_PORT": str(jaeger.otlp)}
    with shop_of_its_own("jaeger", env=IMPATIENT | env | {"PRICING_TRACE_SAMPLE_RATIO": "0"}) as shop:
        yield shop


def test_one_event_is_one_trace_of_all_services_without_an_orphan(shop: Shop, jaeger: Jaeger) -> None:  # noqa: F811
    trace_id, client_span, product = uuid4().hex, uuid4().hex[:16], shop.product()
    response = shop.http.post(
        "/api/v1/publish-market-event",
        json={"type": "list_price.changed", "subject": product, "location": "NY", "data": {"amount": 3}},
        headers={"traceparent": f"00-{trace_id}-{client_span}-01"},
    )
    assert response.json()["trace_id"] == trace_id

    def complete() -> list[dict[str, Any]]:
        spans = jaeger.trace(trace_id)
        ids = {span["spanId"] for span in spans} | {client_span}
        whole = {span["service"] for span in spans} >= SERVICES and "redis put prices" in {s["name"] for s in spans}
        return spans if whole and all(span["parentSpanId"] in ids for span in spans) else []

    spans = eventually(complete, timeout_s=30)
    (root,) = [span for span in spans if span["parentSpanId"] == client_span]
    assert (root["service"], root["name"]) == ("pricing-api", "POST /api/v1/publish-market-event")
    assert {span["service"] for span in spans} == SERVICES
    assert shop.costs("3.00", product)


def test_the_start_says_where_the_traces_are(shop: Shop, jaeger: Jaeger) -> None:  # noqa: F811
    assert f"Traces   http://127.0.0.1:{jaeger.page} (0% of requests" in shop.system.said()
