"""Every panel's query, and every alert's, against a real Prometheus that scrapes the running system."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.metrics import series
from tests.support.prometheus import FOLDER, Prometheus, prometheus_of
from tests.support.shop import Shop
from tests.support.stores import temporary_data
from tests.support.waiting import eventually

DASHBOARDS = FOLDER.parent / "grafana" / "dashboards"


def queries() -> list[tuple[str, str]]:
    return [
        (f"{path.stem}: {panel['title']}, {target['legendFormat']}", target["expr"])
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel.get("datasource", {}).get("uid") == "prometheus"
        for target in panel.get("targets", ())
    ]


def live(shop: Shop) -> None:
    """Some of everything: prices in all ways, events of many kinds, a recalculation, a dead letter."""
    for amount in (10, 11):
        product = shop.product()
        shop.publish("list_price.changed", product, "NY", data={"amount": amount})
        shop.publish("cost.changed", "nobody-sells-this", "NY", data={"amount": 1})
        for name in (product, "unknown-product"):
            shop.http.post("/api/v1/price", json={"product_id": name, "user_location": "NY"})
        items = [{"product_id": product, "user_location": place} for place in ("NY", "LA")]
        shop.http.post("/api/v1/prices/batch", json={"items": items})
    task = shop.http.post("/api/v1/recalculate").json()["task_id"]
    shop.task(task)


@pytest.fixture(scope="module")
def prometheus(shop: Shop) -> Iterator[Prometheus]:
    with temporary_data("pricing-prometheus-") as data, prometheus_of(f"127.0.0.1:{shop.metrics_port}", data) as it:
        live(shop)  # so that every series is there, and then seen to rise
        eventually(lambda: it.query('up{job="pricing"}')[0]["value"] == 1, timeout_s=30)
        live(shop)
        yield it


def test_every_panel_shows_something(shop: Shop, prometheus: Prometheus) -> None:
    left = dict(queries())
    assert len(left) > 60

    def all_answered() -> bool:
        live(shop)
        for where, query in list(left.items()):
            found = prometheus.query(query.replace("$__rate_interval", "30s"))
            # A share of nothing is no number; it becomes one as soon as something is counted.
            if found and all(series["value"] == series["value"] for series in found):
                del left[where]
        return not left

    eventually(all_answered, timeout_s=60)


def test_figures_are_right(shop: Shop, prometheus: Prometheus) -> None:
    assert prometheus.query("sum by (kind) (pricing_processes)") == [
        {"kind": kind, "value": count} for kind, count in (("api", 2), ("jobs", 2), ("listener", 1), ("worker", 2))
    ]
    shop.settle()
    accepted = shop.broker.xinfo_stream("events")["entries-added"]
    eventually(lambda: prometheus.query('pricing_event_ledger{entry="accepted"}')[0]["value"] == accepted)
    dead = prometheus.query('pricing_event_ledger{entry="dead"}')[0]["value"]
    assert dead >= 4
    assert prometheus.query("pricing_dead_letters")[0]["value"] >= dead


def test_all_rules_and_alerts_can_be_evaluated_and_none_fires(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, str]]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    eventually(lambda: all(rule["health"] == "ok" for rule in rules()), timeout_s=30)
    names = {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"}
    assert names <= {"PricingDeadLettersGrowing", "PricingReadsBurnFast"}  # this machine may be slow while it is tested


def test_the_exporter_tells_prometheus_what_the_api_tells_people(shop: Shop) -> None:
    exporter = httpx.get(f"http://127.0.0.1:{shop.metrics_port}/metrics")
    api = shop.http.get("/metrics")
    assert exporter.headers["content-type"] == api.headers["content-type"]
    assert set(series(exporter.text)) == set(series(api.text))
    assert httpx.get(f"http://127.0.0.1:{shop.metrics_port}/other").status_code == 404
