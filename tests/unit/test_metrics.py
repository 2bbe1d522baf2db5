"""The catalogue of metrics: whole, bounded, the same as what is counted, and the page is its print."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from app.adapters import breakers, record_stream, task_names, task_queue
from app.domain import scopes
from app.domain.events import EventType
from app.local.metric_pages import PAGE, as_markdown, as_text
from app.observability import metrics
from app.observability.catalogue import Metric, Open
from tests.support.metrics import declared, undeclared

ROOT = Path(__file__).parents[2]
METRICS = {metric.name: metric for section in metrics.CATALOGUE for metric in section.metrics}
BY_ATTRIBUTE = {
    attribute: METRICS[collector._name + ("_total" if collector._type == "counter" else "")]
    for attribute, collector in vars(metrics).items()
    if isinstance(collector, MetricWrapperBase)
}


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == as_markdown(), "run `pricing metrics --markdown > docs/metrics.md`"


def test_the_page_and_the_list_have_every_metric() -> None:
    assert declared() == {
        metric.name: (
            metric.kind,
            {name: None if isinstance(label, Open) else set(label) for name, label in metric.labels.items()},
        )
        for metric in METRICS.values()
    }
    assert all(name in as_text().plain for name in METRICS)
    assert PAGE in as_markdown()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_names_say_what_is_counted_and_in_what(metric: Metric) -> None:
    assert metric.name.startswith("pricing_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_seconds") == (metric.unit == "seconds")
    assert metric.meaning.endswith(".")
    assert metric.unit or metric.name.endswith("_info")


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_no_label_can_name_one_thing_among_very_many(metric: Metric) -> None:
    assert not {"id", "key", "path", "product", "product_id", "location", "scope", "trace_id"} & set(metric.labels)
    series = 1
    for label in metric.labels.values():
        assert label
        series *= 1 if isinstance(label, Open) else len(label)
    assert series * (len(metric.buckets) + 3) <= 500


def test_latencies_are_resolved_from_a_quarter_of_a_millisecond_to_ten_seconds() -> None:
    for metric in METRICS.values():
        if metric.kind == "histogram" and metric.unit == "seconds":
            assert metric.buckets[0] == 0.00025
            assert metric.buckets[-1] == 10


def test_listed_values_are_those_of_the_code() -> None:
    assert list(metrics.EVENT_TYPES) == [type_.value for type_ in EventType]
    assert set(metrics.TASKS) == {
        task_names.APPLY_EVENTS, task_names.RECALCULATE, task_names.REPRICE_DUE, task_names.WRITE_TELEMETRY,
    }  # fmt: skip
    assert metrics.QUEUES == task_queue.QUEUES
    assert metrics.SINKS == record_stream.SINKS
    assert metrics.BREAKERS == breakers.NAMES
    assert set(metrics.LOCKS) == {"products", scopes.CATALOGUE, "task", task_names.BOUNDARY_SCOPE, "telemetry"}


def uses() -> Iterator[tuple[str, str, list[ast.expr]]]:
    """Every place that counts: where, which attribute of `metrics`, and the labels' values there."""
    for source in (path for part in ("app", "listener", "workers") for path in (ROOT / part).rglob("*.py")):
        tree = ast.parse(source.read_text())
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Attribute(value=ast.Name(id="metrics"), attr=attribute), attr="labels"
                    ),
                    args=arguments,
                ):
                    yield f"{source.relative_to(ROOT)}:{node.lineno}", attribute, arguments
                case ast.Attribute(value=ast.Name(id="metrics"), attr=attribute):
                    yield f"{source.relative_to(ROOT)}:{node.lineno}", attribute, []


def test_every_metric_is_counted_somewhere() -> None:
    own = {name.id for name in ast.walk(ast.parse(Path(metrics.__file__).read_text())) if isinstance(name, ast.Name)
           and isinstance(name.ctx, ast.Load)}  # fmt: skip
    counted = {attribute for _, attribute, _ in uses()} | own
    assert {attribute for attribute in BY_ATTRIBUTE if attribute not in counted} == set()


def test_every_label_that_is_written_out_has_a_value_of_its_list() -> None:
    checked = 0
    for place, attribute, arguments in uses():
        if not arguments or any(isinstance(argument, ast.Starred) for argument in arguments):
            continue
        for argument, label in zip(arguments, BY_ATTRIBUTE[attribute].labels.values(), strict=True):
            if isinstance(argument, ast.Constant) and not isinstance(label, Open):
                assert argument.value in label, place
                checked += 1
    assert checked >= 10


def test_what_the_page_does_not_know_is_found() -> None:
    assert undeclared('# TYPE pricing_quotes_total counter\npricing_quotes_total{source="stale"} 1\n') == []
    assert undeclared("# TYPE other_total counter\nother_total 1\n") == ["other_total: a counter, declared as nothing"]
    assert undeclared('# TYPE pricing_quotes_total counter\npricing_quotes_total{source="P-100"} 1\n') == [
        "pricing_quotes_total: source='P-100'"
    ]
    assert undeclared('# TYPE pricing_near_cache_entries gauge\npricing_near_cache_entries{pid="7"} 1\n') == [
        "pricing_near_cache_entries: labels ['pid'], declared []"
    ]
