"""The figures of a run beside those of the run before."""

from typing import Any

from rich.table import Table

READS = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "p999_ms": "p99.9", "max_ms": "longest"}
STALENESS = {"p50_ms": "p50", "max_ms": "longest"}


def table(figures: dict[str, Any], before: dict[str, Any] | None) -> Table:
    """A line for each figure: now, before, by how much it changed, and the limit."""
    then = "no run before" if before is None else f"before ({before['time'][5:16].replace('T', ' ')})"
    shown = Table("", "now", then, "change", "limit", title=title(figures), title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, now, previous, limit in lines(figures, before):
        over = limit is not None and now is not None and now > limit
        limit_text = "" if limit is None else f"{limit:,g}"
        shown.add_row(
            name, number(now), number(previous), change(now, previous), limit_text, style="red" if over else ""
        )
    return shown


def lines(
    figures: dict[str, Any], before: dict[str, Any] | None
) -> list[tuple[str, float | None, float | None, float | None]]:
    """(what, now, before, limit)."""
    earlier: dict[str, Any] = before or {"reads": {}, "staleness": {}}
    limits = figures["limits"]
    found = [("quotes a second", figures["per_s"], earlier.get("per_s"), None)]
    for key, name in READS.items():
        found.append((f"a quote, {name}, ms", figures["reads"][key], earlier["reads"].get(key), limits.get(key)))
    for key, name in STALENESS.items():
        limit_ms = limits["staleness_s"] * 1000 if key == "max_ms" else None
        shown = f"an event to its price, {name}, ms"
        found.append((shown, figures["staleness"][key], earlier["staleness"].get(key), limit_ms))
    found.append(("answers older than the limit", figures["outdated"], earlier.get("outdated"), 0))
    allowed = limits["failure_share"] * figures["requests"]
    found.append((f"failures of {figures['requests']:,}", figures["failed"], earlier.get("failed"), allowed))
    return found


def title(figures: dict[str, Any]) -> str:
    rate = f"{figures['rate']:g} quotes/s each" if figures["rate"] else "without pause"
    shape = "" if figures["shape"] == "steady" else f" ({figures['shape']})"
    return f"{figures['scenario']}{shape}: {figures['users']} readers, {rate}, for {figures['seconds']} s"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.2f}"


def change(now: float | None, before: float | None) -> str:
    return f"{now / before - 1:+.0%}" if now is not None and before else ""
