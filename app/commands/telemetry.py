"""`pricing telemetry`: whether the record of every answered request is there, and what a sink could not take."""

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import fail, load_settings
from app.commands.dlq_arguments import Json, instant_ms

if TYPE_CHECKING:
    from app.bootstrap import Resources
    from app.domain.stream_entry import SinkLetter

telemetry = typer.Typer(no_args_is_help=True, help="Records of answered requests: what is missing, what is set aside.")
dlq = typer.Typer(
    no_args_is_help=True,
    help="""Batches of records that a sink refused or failed on, and why.

    Look first, mend the cause, then replay: what is there already is not counted again.
    """,
)
telemetry.add_typer(dlq, name="dlq")

MOST_GAPS = 10_000

Sink = Annotated[str, typer.Option(help="postgresql or victoriametrics.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="LETTER", help="Their ids, from the list.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@telemetry.command()
def gaps(
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Only requests since then: 2h, 31d ago, or an ISO 8601 time.")
    ] = "",
    until: Annotated[str, typer.Option(metavar="WHEN", help="Only requests before then.")] = "",
    as_json: Json = False,
) -> None:
    """Requests that were answered and have no record in PostgreSQL, by the numbers of each API process.

    The exit code is 1 where some are missing. Those that still wait in the stream are not; those that wait on the disk
    of an API process are, until it has sent them.

    Examples:

    - `pricing telemetry gaps --since 2026-11-01 --until 2026-12-01`
    - `pricing telemetry gaps --json | jq '.missing'`
    """
    from rich.console import Console
    from rich.table import Table

    from app.adapters.record_heads import heads
    from app.adapters.record_stream import POSTGRESQL
    from app.domain.record_gaps import Known, look_for

    resources = _open()
    now = datetime.now(UTC)
    kept_since = now - timedelta(days=resources.settings.telemetry_retention_days)
    from_ms, until_ms = instant_ms("--since", since), instant_ms("--until", until)
    from_at = kept_since if from_ms is None else datetime.fromtimestamp(from_ms / 1000, UTC)
    until_at = now + timedelta(days=1) if until_ms is None else datetime.fromtimestamp(until_ms / 1000, UTC)
    # In the order in which batches go: one that moves on meanwhile is seen in its first place.
    client = resources.redis_clients["broker"]
    waiting = list(heads(client, resources.settings.telemetry_stream))
    dead = list(heads(client, resources.records.groups[POSTGRESQL].dead_letters))
    with resources.store.transaction() as tx:
        found = look_for(tx.records.gaps(max(from_at, kept_since), until_at, MOST_GAPS), waiting, dead)
    missing = sum(part.gap.missing for part in found if part.where is not Known.STREAM)
    if as_json:
        items = [{**part.gap._asdict(), "missing": part.gap.missing, "where": part.where} for part in found]
        _print({"missing": missing, "items": items})
    elif not found:
        typer.echo("Nothing is missing: the record of every request that was numbered is there.")
    else:
        table = Table("source", "requests", "missing", "answered between", "the process", "where they are", box=None)
        for gap, where in found:
            after = "its start" if gap.after_at is None else _at(gap.after_at)
            table.add_row(
                gap.source,
                f"{gap.first:,} to {gap.last:,}",
                f"{gap.missing:,}",
                f"{after} and {_at(gap.before_at)}",
                "has ended" if gap.ended else "lives, or was lost with its machine",
                where.replace("_", " "),
            )
        Console(width=None if sys.stdout.isatty() else 400).print(table)
        typer.echo(f"{missing:,} requests have no record.")
    raise typer.Exit(1 if missing else 0)


@dlq.command("list")
def list_letters(sink: Sink = "postgresql", as_json: Json = False) -> None:
    """What a sink could not take, the oldest first."""
    from rich.console import Console
    from rich.table import Table

    letters = _letters(_open(), sink)
    if as_json:
        _print({"items": [_summary(letter) for letter in letters]})
        return
    if not letters:
        typer.echo(f"Nothing is set aside for {sink}.")
        return
    table = Table("letter", "source", "requests", "tried", "reason", "last error", box=None)
    for letter in letters:
        said = _summary(letter)
        numbers = f"{said['first']} and {said['count']} in all"
        table.add_row(
            letter.letter_id, said["source"], numbers, str(said["attempts"]), said["reason"], said["last_error"]
        )
    Console(width=None if sys.stdout.isatty() else 400, markup=False).print(table)


@dlq.command()
def replay(letter_ids: Ids = None, everything: All = False, sink: Sink = "postgresql") -> None:
    """Write to the sink after all. The exit code is 1 where one is refused again; it stays."""
    from app.errors import PricingError

    resources = _open()
    consumer = resources.record_sinks.consumer(sink) if sink in resources.records.groups else _unknown(sink)
    replayed, refused = 0, 0
    for letter in _chosen(resources, sink, letter_ids, everything):
        try:
            replayed += consumer.replay(letter)
        except (PricingError, ValueError) as error:
            refused += 1
            typer.echo(f"{letter.letter_id}: {error}", err=True)
    typer.echo(f"{replayed:,} replayed.")
    raise typer.Exit(1 if refused else 0)


@dlq.command()
def discard(letter_ids: Ids = None, everything: All = False, sink: Sink = "postgresql") -> None:
    """Throw away, for good: what PostgreSQL has not taken is never billed, and shows as a gap."""
    resources = _open()
    chosen = _chosen(resources, sink, letter_ids, everything)
    group = resources.records.groups[sink]
    typer.echo(f"{sum(group.discard(letter) for letter in chosen):,} discarded.")


def _open() -> "Resources":
    from app.bootstrap import open_resources
    from app.local.running import settings_of_running

    resources = open_resources(settings_of_running(load_settings()))
    resources.records.ensure()
    return resources


def _letters(resources: "Resources", sink: str) -> "list[SinkLetter]":
    group = resources.records.groups.get(sink) or _unknown(sink)
    letters: list[SinkLetter] = []
    while some := group.letters(letters[-1].letter_id if letters else ""):
        letters += some
    return letters


def _chosen(resources: "Resources", sink: str, letter_ids: list[str] | None, everything: bool) -> "list[SinkLetter]":
    if bool(letter_ids) == everything:
        fail("Name the letters, or say --all.")
    there = {letter.letter_id: letter for letter in _letters(resources, sink)}
    for letter_id in letter_ids or ():
        if letter_id not in there:
            fail(f"There is no letter {letter_id}.")
    return list(there.values()) if everything else [there[letter_id] for letter_id in letter_ids or ()]


def _unknown(sink: str) -> Any:
    fail(f"There is no sink {sink!r}; for victoriametrics set PRICING_VICTORIAMETRICS_URL.")


def _summary(letter: "SinkLetter") -> dict[str, Any]:
    fields = {name: letter.entry.fields.get(name.encode(), b"").decode(errors="replace") for name in _NAMED}
    setback = letter.setback
    return {
        "letter_id": letter.letter_id,
        **fields,
        "reason": letter.reason,
        "attempts": setback.attempts,
        "last_error": setback.last_error,
        "last_failed_at": datetime.fromtimestamp(setback.last_failed_at / 1000, UTC).isoformat(),
    }


_NAMED = ("source", "first", "count")


def _at(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _print(content: dict[str, Any]) -> None:
    from app.api.answers import encode

    sys.stdout.buffer.write(encode(content) + b"\n")
