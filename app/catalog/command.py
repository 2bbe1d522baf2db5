"""`pricing import`: a catalogue into the database, priced."""

import time
from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 20
"""Refused rows that the terminal shows; a file takes them all."""


def import_catalog(
    source: Annotated[
        str,
        typer.Argument(
            help="A CSV, NDJSON or Parquet file, a folder of them (products.csv, list_prices.parquet, …), "
            "`completejourney` (a grocer's real year) or `sample`."
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="What a file holds: locations, products, list_prices, signals, policies or promotions."),
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="Write every refused row to this CSV file.")] = None,
) -> None:
    """Import a catalogue and compute its prices. What is there already stays as it is; running it again is safe.

    A row that cannot go in is reported with its line, and the rest goes in all the same; the exit code is 1 then.
    """
    from rich.console import Console

    from app.catalog.reporting import Refusals, progress_bars, summary
    from app.catalog.rows import Kind
    from app.catalog.sources import import_source, open_source
    from app.cli import fail, load_settings
    from app.local.running import settings_of_running

    if kind is not None and kind not in set(Kind):
        fail(f"--kind is one of {', '.join(Kind)}")
    began, console = time.monotonic(), Console()
    settings = settings_of_running(load_settings())
    opened = open_source(source, Kind(kind) if kind else None)
    with Refusals(errors, _SHOWN) as refusals, progress_bars(console) as progress:
        result = import_source(settings, opened, progress, refusals.add)
    for line in refusals.lines():
        typer.echo(line, err=True)
    for line in summary(result, time.monotonic() - began):
        typer.echo(line)
    raise typer.Exit(1 if refusals.count else 0)
