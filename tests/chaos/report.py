"""What was killed how often, and what was found."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.ledger import Ledger, Violation, unique
from tests.chaos.run import Result

BEFORE_S = 15.0
AROUND_S = (5.0, 40.0)
"""How long before and after an event its story goes, in seconds."""


def table(result: Result) -> str:
    width = max(map(len, result.ledger.counts), default=0)
    lines = [f"seed {result.options.seed}, {result.options.seconds:g} s", "", "faults"]
    lines += [f"  {name:<{width}} {times:4}" for name, times in sorted(result.ledger.counts.items())]
    lines += [f"  {'together':<{width}} {result.ledger.counts.total():4}", ""]
    lines += [f"{name}: {_figures(figures)}" for name, figures in result.figures.items()]
    lines += ["", f"{len(result.violations)} violations" if result.violations else "no promise was broken"]
    return "\n".join(lines)


def _figures(figures: object) -> str:
    return (
        ", ".join(f"{value} {name}" for name, value in figures.items()) if isinstance(figures, dict) else str(figures)
    )


def stories(result: Result) -> Iterator[str]:
    """The first of each sort of violation, with everything that is known of its events and price."""
    for violation in unique(result.violations):
        yield "\n".join([f"✘ {violation.promise}", f"  {violation.what}", *_story(result, violation)])


def _story(result: Result, violation: Violation) -> Iterator[str]:
    ledger, outcome = result.ledger, result.outcome
    for event_id in filter(None, violation.event_ids):
        yield f"  event {event_id}"
        if (sent := ledger.sent.get(event_id)) is not None:
            yield f"    sent by {sent.way}: {json.dumps(sent.event)}"
            yield f"    answers: {', '.join(f'{at:.2f} s {answer}' for at, answer in sent.answers)}"
            first = sent.answers[0][0] if sent.answers else 0.0
            yield from (f"    {line}" for line in _faults(ledger, first - AROUND_S[0], first + AROUND_S[1]))
        for entry in ledger.in_order():
            if entry.event_id == event_id:
                yield f"    in the stream: {entry.stream_id} ({entry.at(ledger.began_at):.2f} s)"
        yield f"    processed: {'yes' if event_id in outcome.processed else 'no'}"
        yield from (f"    dead letter: {letter}" for letter in outcome.letters if event_id in letter["event"])
        for row, versions in outcome.history.items():
            yield from (f"    history: {row} {version}" for version in versions if event_id in version.cause)
    if violation.at is not None:
        yield from (f"  {line}" for line in _faults(ledger, violation.at - BEFORE_S, violation.at + 2))
    if violation.row is not None:
        yield f"  the last versions of {violation.row}:"
        yield from (f"    {version}" for version in outcome.history[violation.row][-5:])


def _faults(ledger: Ledger, since: float, until: float) -> Iterator[str]:
    for at, text in ledger.faults:
        if since <= at <= until:
            yield f"{at:7.2f} s  {text}"


def save(result: Result, path: Path) -> None:
    content = {
        "seed": result.options.seed, "seconds": result.options.seconds,
        "faults": dict(sorted(result.ledger.counts.items())), **result.figures,
        "violations": [v._asdict() for v in result.violations],
        "timeline": [{"at_s": round(at, 2), "what": text} for at, text in result.ledger.faults],
        "ledger": str(result.ledger.path),
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
