"""Every metric, shown: as a list, or as the page docs/metrics.md."""

from rich.text import Text

from app.observability import metrics
from app.observability.catalogue import Label, Metric, Open

PAGE = """\
# Metrics

What the service counts, for Prometheus. One scrape has the metrics of every process on the machine: `/metrics` of the
API, or of the port that `PRICING_METRICS_PORT` names, which a process of its own serves. docs/operations.md says what
to make of them; `deploy/prometheus` has the alerts, `deploy/grafana` the dashboards.

Counters and histograms go on where a process that ended left off, so they never run backwards while the system is up.
Gauges are those of living processes. Labels have the values that are listed here and no others, unless it says what
bounds them; none is ever an id, a key or a path.

This page is written by `pricing metrics --markdown > docs/metrics.md`.
"""


def as_markdown() -> str:
    """The page."""
    return PAGE + "".join(
        f"\n## {section.title}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
        + "".join(_row(metric) for metric in section.metrics)
        for section in metrics.CATALOGUE
    )


def as_text() -> Text:
    """Two lines per metric."""
    text = Text()
    for section in metrics.CATALOGUE:
        for metric in section.metrics:
            labels = ", ".join(metric.labels)
            text.append(metric.name, "bold").append(f"{{{labels}}}" if labels else "").append(f"  {metric.kind}", "dim")
            text.append(f"\n    {metric.meaning}\n")
    return text


def _row(metric: Metric) -> str:
    labels = "<br>".join(f"`{name}`: {_values(label)}" for name, label in metric.labels.items())
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
    return f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.meaning}{buckets} |\n"


def _values(label: Label) -> str:
    return label.bounded_by if isinstance(label, Open) else ", ".join(f"`{value}`" for value in label)
