"""What a metric is: declared once, with its name, type, unit, labels and meaning, and counted in by every process.

The declarations are in `metrics`; docs/metrics.md is written from them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import Counter, Gauge, Histogram, values

from app.observability.seats import Seats

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder where processes count. prometheus-client wants it before its first metric."""


class Open(NamedTuple):
    """The values of a label that no list can name, and what bounds them."""

    bounded_by: str


Label = Sequence[str] | Open


class Metric(NamedTuple):
    """One entry of the catalogue."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: dict[str, Label]
    meaning: str
    buckets: Sequence[float] = ()


class Section:
    """Metrics about one thing. Each is declared by what makes it; gauges say how a scrape joins those of several
    living processes: their sum, their greatest, or the one that was set last."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.metrics: list[Metric] = []
        CATALOGUE.append(self)

    def counter(self, name: str, unit: str, meaning: str, **labels: Label) -> Counter:
        self.metrics.append(Metric(name, "counter", unit, labels, meaning))
        return Counter(name, meaning, list(labels))

    def gauge(
        self, name: str, unit: str, mode: Literal["livesum", "livemax", "livemostrecent"], meaning: str, **labels: Label
    ) -> Gauge:
        self.metrics.append(Metric(name, "gauge", unit, labels, meaning))
        return Gauge(name, meaning, list(labels), multiprocess_mode=mode)

    def histogram(self, name: str, unit: str, buckets: Sequence[float], meaning: str, **labels: Label) -> Histogram:
        self.metrics.append(Metric(name, "histogram", unit, labels, meaning, buckets))
        return Histogram(name, meaning, list(labels), buckets=buckets)


CATALOGUE: list[Section] = []

SEATS = Seats(Path(os.environ[FOLDER])) if FOLDER in os.environ else None

if SEATS is not None:
    values.ValueClass = values.MultiProcessValue(SEATS.mine)  # type: ignore[no-untyped-call]
