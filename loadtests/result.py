"""The figures of a load test, as JSON has them, and in words."""

from datetime import UTC, datetime
from typing import Any

from locust.env import Environment

from loadtests.record import READS, STALENESS, Record, Tally

SHARES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


def result(environment: Environment, breached: list[str]) -> dict[str, Any]:
    """Everything that was measured and what is needed to measure it again. Latencies are in ms."""
    options, record, runner = environment.parsed_options, environment.record, environment.runner
    assert options is not None
    assert runner is not None
    everything, reads = record.whole(record.names()), record.whole([READS])
    timeline = list(record.seconds(READS))
    errors = sorted(runner.errors.values(), key=lambda error: -error.occurrences)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "scenario": options.scenario,
        "shape": options.shape,
        "users": options.num_users,
        "rate": options.rate,
        "seconds": len(timeline),
        "host": environment.host,
        "limits": vars(environment.limits),
        "breached": breached,
        "per_s": round(reads.count / len(timeline), 1) if timeline else 0,
        "reads": figures(reads),
        "staleness": figures(record.whole([STALENESS])),
        "names": {name: figures(record.whole([name])) for name in record.names()},
        "requests": everything.count,
        "failed": everything.failed,
        "outdated": everything.outdated,
        "failures": [[error.occurrences, f"{error.name}: {error.error}"] for error in errors[:20]],
        "timeline": second_by_second(record),
    }


def figures(tally: Tally) -> dict[str, Any]:
    return {"count": tally.count, "failed": tally.failed} | {name: tally.ms(share) for name, share in SHARES.items()}


def second_by_second(record: Record) -> dict[str, list[Any]]:
    """As columns, one value a second. `staleness_ms` is the longest time that an event took; null where none came."""
    reads = [tally for _, tally in record.seconds(READS)]
    events = [tally for _, tally in record.seconds(STALENESS)]
    return {
        "reads": [tally.count for tally in reads],
        "failed": [tally.failed for tally in reads],
        **{name: [tally.ms(share) for tally in reads] for name, share in list(SHARES.items())[:3]},
        "staleness_ms": [tally.ms(1.0) for tally in events],
    }


def spoken(figures: dict[str, Any]) -> str:
    """What was seen in a line, and in a line each what failed most and what was breached."""
    reads = figures["reads"]
    seen = " ".join(f"{name.removesuffix('_ms')} {reads[name]} ms" for name in SHARES) if reads["count"] else ""
    lines = [f"{figures['scenario']}: {reads['count']:,} quotes, {figures['per_s']:,}/s {seen}"]
    lines += [f"{count:,} × {failure}" for count, failure in figures["failures"][:5]]
    lines += [f"Breached: {sentence}" for sentence in figures["breached"]] or ["Every limit was kept."]
    return "\n".join(["", *lines, ""])
