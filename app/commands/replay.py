"""`pricing replay`: real weeks through the running service."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import fail, load_settings

if TYPE_CHECKING:
    from app.catalog.merging import Progress
    from app.replay.playing import Tally

LEAST_SHARE = 0.975
"""Of all purchases. In the whole year 97.8 % were at the price that held for most of their week."""


def replay(
    source: Annotated[str, typer.Argument(help="`completejourney`, the only year there is.")],
    weeks: Annotated[str, typer.Option(help="Weeks to play, such as 1-4 or 30; there are 53.")],
    url: Annotated[
        str | None, typer.Option(help="The API. Left out: the `pricing up` that runs here, or port 8000.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests at a time.")] = 16,
) -> None:
    """Play a grocer's real year: its price changes as events, its purchases as quotes, compared to the cent.

    The exit code is 1 where less than 97.5 % were quoted as they were paid, or one for no reason in the data.
    """
    import asyncio

    from rich.console import Console

    from app.catalog.reporting import progress_bars
    from app.local.addresses import api_url
    from app.local.running import key_headers, settings_of_running

    first, _, last = weeks.partition("-")
    if source != "completejourney":
        fail("only completejourney can be replayed")
    if not (first.isdigit() and (last or first).isdigit() and 1 <= int(first) <= int(last or first) <= 53):
        fail(f"--weeks {weeks}: give one week or a range within 1-53, such as 1-4")
    settings = load_settings()
    address = (url or api_url(settings_of_running(settings))).rstrip("/")
    headers = key_headers(settings, address)
    began = time.monotonic()
    with progress_bars(Console()) as progress:
        total = asyncio.run(_play(address, headers, int(first), int(last or first), concurrency, progress))
    _conclude(total, time.monotonic() - began)
    unexplained = total.mismatches.total() - total.mismatches[_several()]
    # Where the data itself allows less than 97.5 %, no price list could do better than it allows.
    least = min(LEAST_SHARE * total.purchases, total.possible)
    raise typer.Exit(1 if unexplained or total.exact < least else 0)


async def _play(
    url: str, headers: dict[str, str], first: int, last: int, concurrency: int, progress: "Progress"
) -> "Tally":
    from app.replay.playing import Player
    from app.replay.service import connect
    from app.replay.year import Year

    async with connect(url, concurrency, headers) as service:
        year, player = Year(), Player(service, concurrency, progress)
        typer.echo(f"The grocer's year, weeks {first} to {last}, through {url}, {concurrency} requests at a time\n")
        typer.echo("   week    events    seconds   purchases    seconds   to the cent")
        total = await player.prepare(year, first, last)
        typer.echo(f" before{total.events:>10,}{total.event_seconds:>11.1f}")
        for week in range(first, last + 1):
            tally = await player.week(year, week)
            typer.echo(_line(str(week), tally))
            total.add(tally)
        typer.echo(_line("all", total))
        return total


def _line(name: str, tally: "Tally") -> str:
    share = tally.exact / tally.purchases if tally.purchases else 1.0
    return (
        f"{name:>7}{tally.events:>10,}{tally.event_seconds:>11.1f}{tally.purchases:>12,}"
        f"{tally.quote_seconds:>11.1f}{share:>13.2%}"
    )


def _conclude(total: "Tally", seconds: float) -> None:
    if total.purchases:
        share, possible = total.exact / total.purchases, total.possible / total.purchases
        typer.echo(f"\n{total.exact:,} of {total.purchases:,} purchases ({share:.2%}) quoted to the cent;")
        typer.echo(f"{possible:.2%} were at the price that held for most of their week, which is the data's own limit.")
    for reason, count in total.mismatches.most_common():
        typer.echo(f"{count:,} mismatches: {reason}.")
    for defect in total.defects:
        typer.echo(f"  {defect}")
    quotes = total.purchases / max(total.quote_seconds, 1e-9)
    events = total.events / max(total.event_seconds, 1e-9)
    typer.echo(f"{seconds:.1f} s in all: {quotes:,.0f} quotes/s, {events:,.0f} events/s from publishing to in force.")


def _several() -> str:
    from app.replay.playing import SEVERAL_PRICES

    return SEVERAL_PRICES
