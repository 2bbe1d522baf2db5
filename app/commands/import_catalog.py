"""`pricing import`: a catalogue into the database, priced."""

import time
from pathlib import Path
from typing import Annotated

import typer

from app.commands import fail, load_settings

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
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Only into a database without products: a repeat changes nothing.")
    ] = False,
    errors: Annotated[Path | None, typer.Option(help="Write every refused row to this CSV file.")] = None,
) -> None:
    """Import a catalogue and compute its prices. Running it again changes nothing.

    A catalogue says what holds now: its values replace those that are there, also what events have said since.

    A row that cannot go in is reported with its line, and the rest goes in all the same; the exit code is 1 then.
    """
    from rich.console import Console

    from app.catalog.reporting import Refusals, progress_bars, summary
    from app.catalog.rows import Kind
    from app.catalog.sources import fill, import_source, open_source
    from app.local.running import settings_of_running

    if kind is not None and kind not in set(Kind):
        fail(f"--kind is one of {', '.join(Kind)}")
    if if_empty and kind is not None:
        fail("--if-empty is for a whole catalogue, which has several kinds")
    began, console = time.monotonic(), Console()
    settings = settings_of_running(load_settings())
    opened = open_source(source, Kind(kind) if kind else None)
    with Refusals(errors, _SHOWN) as refusals, progress_bars(console) as progress:
        if if_empty:
            result = fill(settings, source, progress, refusals.add)
        else:
            result = import_source(settings, opened, progress, refusals.add)
    for line in refusals.lines():
        typer.echo(line, err=True)
    if result is None:
        typer.echo("The database has products already; nothing was imported.")
        return
    for line in summary(result, time.monotonic() - began):
        typer.echo(line)
    raise typer.Exit(1 if refusals.count else 0)
