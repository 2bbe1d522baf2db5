"""Latency and throughput over time, as an image; the run before in the background."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loadtests.table import title

INK, FAINT, GRID, BEFORE = "#1f2933", "#7b8794", "#e4e7eb", "#c3cbd4"
LATENCIES = {"p50_ms": ("p50", "#2a9d8f"), "p95_ms": ("p95", "#e9a23b"), "p99_ms": ("p99", "#d1495b")}
READS, FAILED, EVENTS = "#3d5a80", "#d1495b", "#6d597a"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "load",
}
"""With a fixed salt the same figures give the same file."""


def draw(figures: dict[str, Any], before: dict[str, Any] | None, file: Path) -> None:
    """As an SVG or a PNG, by the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained", facecolor="white")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.suptitle(f"{title(figures)}, {figures['time'][:10]}", x=0.01, ha="left", weight="bold", size=12)
        latency(above, figures, before)
        throughput(below, figures, before)
        for axes in (above, below):
            axes.grid(axis="y", color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(loc="upper right", ncols=6, frameon=False, fontsize=9)
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def latency(axes: Axes, figures: dict[str, Any], before: dict[str, Any] | None) -> None:
    timeline = figures["timeline"]
    seconds = range(len(timeline["reads"]))
    if before is not None:
        earlier = before["timeline"]["p99_ms"]
        axes.plot(range(len(earlier)), gaps(earlier), color=BEFORE, linewidth=1.6, label="p99 before")
    for key, (name, color) in LATENCIES.items():
        axes.plot(seconds, gaps(timeline[key]), color=color, linewidth=1.6, label=name)
    axes.axhline(figures["limits"]["p99_ms"], color=LATENCIES["p99_ms"][1], linewidth=1, linestyle=(0, (2, 3)))
    seen = [(second, ms) for second, ms in enumerate(timeline["staleness_ms"]) if ms is not None]
    if seen:
        axes.scatter(
            *zip(*seen, strict=True),
            s=12,
            clip_on=False,
            zorder=3,
            color=EVENTS,
            alpha=0.6,
            linewidths=0,
            label="event to price",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 2)  # room for the legend
    axes.set_title("Latency, ms (dotted: the limit of p99)", loc="left", size=10, color=FAINT)


def throughput(axes: Axes, figures: dict[str, Any], before: dict[str, Any] | None) -> None:
    timeline = figures["timeline"]
    seconds = range(len(timeline["reads"]))
    earlier = [] if before is None else before["timeline"]["reads"]
    if earlier:
        axes.plot(range(len(earlier)), earlier, color=BEFORE, linewidth=1.6, label="before")
    axes.fill_between(seconds, timeline["reads"], color=READS, alpha=0.15, linewidth=0)
    axes.plot(seconds, timeline["reads"], color=READS, linewidth=1.6, label="quotes")
    if any(timeline["failed"]):
        axes.bar(seconds, timeline["failed"], color=FAILED, width=1, label="failed")
    axes.set_ylim(0, 1.25 * max([1, *timeline["reads"], *earlier]))
    axes.set_xlim(0, max(1, len(timeline["reads"]) - 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.set_title("Quotes answered a second", loc="left", size=10, color=FAINT)
    axes.set_xlabel("seconds")


def gaps(values: list[float | None]) -> list[float]:
    """Seconds in which nothing was measured are not drawn."""
    return [float("nan") if value is None else value for value in values]
