"""What a scrape says, and what docs/metrics.md says that it may say."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by sample and labels."""

_ROW = re.compile(r"\| `(pricing_\w+)` \| (counter|gauge|histogram) \| [^|]* \| ([^|]*) \| [^|]* \|")
_LABEL = re.compile(r"`(\w+)`: (.*)")


def declared() -> dict[str, tuple[str, dict[str, set[str] | None]]]:
    """By the name of a metric, its type, and its labels with their values; None where those are not listed."""
    return {name: (kind, dict(_labels(labels))) for name, kind, labels in _ROW.findall(PAGE.read_text())}


def _labels(cell: str) -> Iterator[tuple[str, set[str] | None]]:
    for label in filter(None, cell.strip().split("<br>")):
        name, values = _LABEL.fullmatch(label).groups()  # type: ignore[union-attr]
        yield name, set(re.findall("`([^`]+)`", values)) if values.startswith("`") else None


def series(scraped: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
    }


def counted(scraped: str) -> Series:
    """Only what must never run backwards."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scraped)
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def ran_backwards(before: Series, after: Series) -> list[str]:
    """Each series of `before` that is lower in `after`, or gone."""
    return [
        f"{name}{dict(labels)}: {value} → {after.get((name, labels))}"
        for (name, labels), value in before.items()
        if after.get((name, labels), -1.0) < value
    ]


def undeclared(scraped: str) -> list[str]:
    """Each thing in a scrape that docs/metrics.md does not know."""
    known = declared()
    wrong: list[str] = []
    for family in text_string_to_metric_families(scraped):
        name = family.name if family.type != "counter" else f"{family.name}_total"
        kind, labels = known.get(name, ("", {}))
        if kind != family.type:
            wrong.append(f"{name}: a {family.type}, declared as {kind or 'nothing'}")
            continue
        for sample in family.samples:
            own = {label: value for label, value in sample.labels.items() if label != "le"}
            if set(own) != set(labels):
                wrong.append(f"{name}: labels {sorted(own)}, declared {sorted(labels)}")
            for label, value in own.items():
                allowed = labels.get(label)
                if allowed is not None and value not in allowed:
                    wrong.append(f"{name}: {label}={value!r}")
    return sorted(set(wrong))
