"""What a scrape says, for whoever has no Prometheus at hand: sums, differences and quantiles."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scrape:
    """Values by sample and labels. `labels` that are asked for choose; all others are summed over."""

    def __init__(self, values: Mapping[tuple[str, Labels], float]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return any(sample == name for sample, _ in self._values)

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.by(name, "", **labels).values())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums by the values of one label."""
        wanted = labels.items()
        sums: defaultdict[str, float] = defaultdict(float)
        for (sample, own), value in self._values.items():
            if sample == name and wanted <= own:
                sums[dict(own).get(label, "")] += value
        return dict(sums)

    def since(self, before: "Scrape") -> "Scrape":
        """What counters and histograms have counted after `before`. One that is lower now began anew."""
        values = {}
        for series, value in self._values.items():
            earlier = before._values.get(series, 0.0)
            values[series] = value - earlier if value >= earlier else value
        return Scrape(values)

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Of a histogram: at most this is what the given share of its observations had, as Prometheus'
        histogram_quantile has it, with a straight line within a bucket; None where nothing was observed."""
        counts = self.by(f"{name}_bucket", "le", **labels)
        buckets = sorted((float(bound), count) for bound, count in counts.items())
        if not buckets or not buckets[-1][1]:
            return None
        rank = share * buckets[-1][1]
        for (lower, below), (upper, count) in pairwise([(0.0, 0.0), *buckets]):
            if count >= rank:
                return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        raise AssertionError


def parse(text: str) -> Scrape:
    """Prometheus' text format. Raises `ValueError` where it is none."""
    return Scrape(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )
