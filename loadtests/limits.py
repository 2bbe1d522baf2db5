"""What a load test must keep, from limits.toml, and what it did not."""

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from loadtests.record import READS, STALENESS, Record

FILE = Path(__file__).with_name("limits.toml")


class BadLimits(ValueError):
    """A file of limits that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Limits:
    p95_ms: float
    p99_ms: float
    failure_share: float
    staleness_s: float


def limits_of(scenario: str, file: Path = FILE) -> Limits:
    """Those of [every], with the scenario's own. Raises `BadLimits`."""
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadLimits(f"the limits in {file} cannot be read: {error}") from error
    given = content.get("every", {}) | content.get(scenario, {})
    needed = {field.name for field in fields(Limits)}
    if unknown := given.keys() - needed:
        raise BadLimits(f"{file} limits {', '.join(sorted(unknown))}, which is not measured")
    if missing := needed - given.keys():
        raise BadLimits(f"{file} does not say {', '.join(sorted(missing))} for {scenario}")
    if not all(isinstance(value, int | float) and value >= 0 for value in given.values()):
        raise BadLimits(f"{file} has a limit for {scenario} that is no number from 0 on")
    return Limits(**given)


def breaches(limits: Limits, record: Record) -> list[str]:
    """One sentence for each limit that was not kept."""
    found = []
    reads, everything, events = record.whole([READS]), record.whole(record.names()), record.whole([STALENESS])
    if not reads.count:
        found.append("no price was read")
    for name, share in (("p95_ms", 0.95), ("p99_ms", 0.99)):
        seen, limit = reads.ms(share), asdict(limits)[name]
        if seen is not None and seen > limit:
            found.append(f"{name}: {seen:,.2f} ms of single quotes, the limit is {limit:,g} ms")
    if everything.failed > limits.failure_share * everything.count:
        share = everything.failed / everything.count
        found.append(
            f"failure_share: {everything.failed:,} of {everything.count:,} requests and checks failed ({share:.4%}), "
            f"the limit is {limits.failure_share:.4%}"
        )
    slowest_ms = events.ms(1)
    if slowest_ms is not None and slowest_ms > limits.staleness_s * 1000:
        found.append(f"staleness_s: an event took {slowest_ms / 1000:,.2f} s, the limit is {limits.staleness_s:g} s")
    if everything.outdated:
        found.append(
            f"staleness_s: {everything.outdated:,} answers were older than the limit of {limits.staleness_s:g} s"
        )
    return found
