"""Dashboards and alerts: what files can tell. That their queries find something is for tests/e2e/test_dashboards.py."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.support.metrics import declared

ROOT = Path(__file__).parents[2]
GRAFANA, PROMETHEUS = ROOT / "deploy/grafana", ROOT / "deploy/prometheus"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (GRAFANA / "dashboards").glob("*.json")}
RULES: list[dict[str, Any]] = [
    rule
    for name in ("rules.yml", "alerts.yml")
    for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = sorted({rule["alert"] for rule in RULES if "alert" in rule})
RUNBOOK = (ROOT / "docs/operations.md").read_text()


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        yield from ((name, panel) for panel in dashboard["panels"] if panel["type"] != "row")


def queries() -> Iterator[tuple[str, str]]:
    """Of Prometheus."""
    for name, panel in panels():
        if panel["datasource"]["uid"] == "prometheus":
            yield from ((f"{name}: {panel['title']}", target["expr"]) for target in panel["targets"])
    yield from ((rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES)


def test_the_files_are_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("generate", GRAFANA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert {path.stem for path in (GRAFANA / "dashboards").iterdir()} == set(generate.DASHBOARDS)
    for name in generate.DASHBOARDS:
        assert (GRAFANA / f"dashboards/{name}.json").read_text() == generate.written(name), (
            "run `python deploy/grafana/generate.py`"
        )


def test_panels_say_what_they_show_and_do_not_cover_each_other() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 5
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/pricing.yml").read_text())["datasources"]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {urlsplit(source["url"]).hostname for source in provisioned} <= services.keys()
    for dashboard in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert max(x for x, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells
    for _, panel in panels():
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] in {source["uid"] for source in provisioned}


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_queries_name_what_is_declared(where: str, query: str) -> None:
    known, recorded = declared(), {rule["record"] for rule in RULES if "record" in rule}
    for name in re.findall(r"\bpricing[\w:]+\b", re.sub(r'"[^"]*"', '""', query)):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in recorded or name in known or known[base][0] == "histogram", where
    for name, matchers in re.findall(r"\b(pricing_\w+)\{([^}]*)\}", re.sub(r"\{product_id\}", "", query)):
        labels = (known.get(name) or known[re.sub(r"_(bucket|count|sum)$", "", name)])[1]
        for label, how, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label == "le":
                continue
            values = labels[label]
            if values is not None:
                assert set(value.split("|") if "~" in how else [value]) <= values, where
    used = {metric for metric in known if metric in query}
    every_label = {label for metric in used for label in known[metric][1]} | {"le"}
    for labels_of_by in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in labels_of_by.split(",")} <= every_label, where


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    asked = " ".join(query for _, query in queries())
    assert [name for name in declared() if not re.search(rf"\b{name}(_bucket|_count|_sum)?\b", asked)] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook_and_a_test(alert: str) -> None:
    section = re.search(rf"^### {alert}\n(.*?)(?=^##)", RUNBOOK + "\n##", re.M | re.S)
    assert section, f"docs/operations.md has no section ### {alert}"
    for part in ("**What it means.**", "**How to look.**", "**What to do.**"):
        assert part in section[1], (alert, part)
    for rule in RULES:
        if rule.get("alert") == alert:
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{alert.lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
    checks = [
        check
        for path in (PROMETHEUS / "tests").glob("*.yml")
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["alert_rule_test"]
        if check["alertname"] == alert
    ]
    assert [check for check in checks if check["exp_alerts"]], "never seen firing"
    assert [check for check in checks if not check["exp_alerts"]], "never seen silent"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert sorted(re.findall(r"^### (Pricing\w+)$", RUNBOOK, re.M)) == ALERTS
