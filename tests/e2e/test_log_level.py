"""What the processes write down: a line per request and per task, and how much of it, changed while they run."""

import json
import subprocess
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from tests.support.shop import Shop
from tests.support.system import PRICING, environment
from tests.support.waiting import eventually

CHILDREN = {"api": 2, "listener": 1, "worker": 2, "jobs": 2, "metrics": 1}
"""Processes that follow, by the log that they write."""


def pricing(shop: Shop, *arguments: str) -> str:
    done = subprocess.run(
        [PRICING, "log-level", *arguments],
        env=environment({"PRICING_DATA": str(shop.system.data)}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def lines(shop: Shop, log: str) -> list[dict[str, Any]]:
    written = (shop.system.data / "logs" / f"{log}.log").read_text().splitlines()
    return [json.loads(line) for line in written if line.startswith("{") and line.endswith("}")]


def told(shop: Shop, log: str, level: str) -> int:
    """How often a process said that this is its level now."""
    return len(
        [entry for entry in lines(shop, log) if entry.get("log_level") == level and entry["event"] != "settings"]
    )


def of_trace(shop: Shop, log: str, trace_id: str) -> list[dict[str, Any]]:
    return [entry for entry in lines(shop, log) if entry.get("trace_id") == trace_id]


def asked(shop: Shop) -> str:
    """The trace of a request for a price."""
    trace_id = uuid4().hex
    body = {"product_id": "anything", "user_location": "NY"}
    shop.http.post("/api/v1/price", json=body, headers={"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-00"})
    return trace_id


def everybody_has(shop: Shop, level: str, before: dict[str, int]) -> None:
    expected = {log: before[log] + count for log, count in CHILDREN.items()}
    eventually(lambda: {log: told(shop, log, level) for log in CHILDREN} == expected, timeout_s=30)


def counts(shop: Shop, level: str) -> dict[str, int]:
    return {log: told(shop, log, level) for log in CHILDREN}


def said_by_celery(shop: Shop) -> int:
    """Lines in which Celery says of tasks what ours say, too."""
    repeating = ("celery.worker.strategy", "celery.app.trace")
    return len([entry for log in ("worker", "jobs") for entry in lines(shop, log) if entry["logger"] in repeating])


def test_every_process_follows_and_goes_back_by_itself(shop: Shop) -> None:
    eventually(lambda: of_trace(shop, "api", asked(shop)))
    errors, infos = counts(shop, "error"), counts(shop, "info")
    assert "Every process writes error and above for 0.1 more minutes." in pricing(shop, "error", "--for", "0.1")
    everybody_has(shop, "error", errors)
    unwritten = asked(shop)
    everybody_has(shop, "info", infos)
    assert pricing(shop) == "Every process writes what its settings say (PRICING_LOG_LEVEL).\n"
    written = asked(shop)
    eventually(lambda: of_trace(shop, "api", written))
    assert of_trace(shop, "api", unwritten) == []


def test_debug_says_more_until_it_is_taken_back_and_no_secret(shop: Shop) -> None:
    debugs, infos = counts(shop, "debug"), counts(shop, "info")
    pricing(shop, "debug")
    everybody_has(shop, "debug", debugs)
    shop.happen("cost.changed", shop.product(), "NY", data={"amount": 1})
    eventually(lambda: [entry for entry in lines(shop, "worker") if entry["event"] == "batch"])
    assert "settings say" in pricing(shop, "default")
    everybody_has(shop, "info", infos)
    system = shop.system
    urls = system.broker_url, system.cache_url, system.database_url
    secrets = {urlsplit(url).password for url in urls} - {None}
    assert secrets
    for log in CHILDREN:
        text = (shop.system.data / "logs" / f"{log}.log").read_text()
        assert not [secret for secret in secrets if secret and secret in text]


def test_a_request_and_a_task_are_one_line_each_with_trace_and_span(shop: Shop) -> None:
    product, trace_id = shop.product(), uuid4().hex
    shop.settle()
    before = said_by_celery(shop)
    body = {"type": "cost.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    headers = {"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01"}
    answer = shop.http.post("/api/v1/publish-market-event", json=body, headers=headers)
    (request,) = eventually(lambda: of_trace(shop, "api", trace_id))
    assert (request["event"], request["status"]) == ("request", 202)
    assert request["span_id"] == answer.headers["traceparent"].split("-")[2]
    shop.settle()
    tasks = eventually(lambda: of_trace(shop, "worker", trace_id))
    assert {entry["event"] for entry in tasks} == {"task"}
    assert len({entry["span_id"] for entry in tasks}) == len(tasks)
    assert said_by_celery(shop) == before
