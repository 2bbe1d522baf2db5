"""`pricing dlq`: the dead letters, for whoever mends what was wrong with them."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import fail, load_settings
from app.commands.dlq_arguments import All, Ids, Json, checked, filtered, means_all

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from app.adapters.dead_letters import DeadLetters
    from app.domain.dead_letter import DeadLetter, Wanted

dlq = typer.Typer(
    no_args_is_help=True,
    help="""Events that nobody could apply, and why.

    Look first (list, show), mend the cause, then replay: the event goes into the stream again under its own id, so it
    has effect once at most, and in its own place, so it never overwrites anything newer. Discard what will never be
    right. Nothing leaves by itself.
    """,
)

_PATIENCE_S = 2.0
"""What takes longer than this shows how far it is."""


@dlq.command("list")
@filtered
def list_letters(
    filters: "Wanted",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    before: Annotated[str, typer.Option(metavar="LETTER", help="The next page: those before this one.")] = "",
    as_json: Json = False,
) -> None:
    """The newest dead letters.

    Examples:

    - `pricing dlq list --reason "there is no" --since 2h`
    - `pricing dlq list --json | jq -r '.items[].reason' | sort | uniq -c`
    """
    from rich.table import Column, Table

    from app.services.dead_letters import page

    letters = _open()
    found, next_before = page(letters, filters, checked([before])[0] if before else "", limit)
    total = letters.count()
    if as_json:
        _print({"items": [letter.summary() for letter in found], "next_before": next_before, "total": total})
        return
    if not found:
        typer.echo("There are no dead letters." if total == 0 else f"None of {total:,} dead letters is like that.")
    else:
        table = Table(Column("letter", no_wrap=True), "age", "event", "about", "tried", "reason", box=None)
        for letter in found:
            said = letter.summary()
            about = f"{said['subject']} at {said['location']}" if said["replayable"] else ""
            cells = (_age(letter), said["type"] or "malformed", about, str(letter.attempts), letter.reason)
            table.add_row(letter.letter_id, *map(_plain, cells))
        _console().print(table)
        typer.echo(f"{len(found):,} of {total:,} dead letters.")
    if next_before is not None:
        typer.echo(f"More: --before {next_before}")


@dlq.command()
def show(letter_id: Annotated[str, typer.Argument(metavar="LETTER")], as_json: Json = False) -> None:
    """All that is known of one dead letter, and its event."""
    import msgspec
    from rich.table import Table

    from app.services.dead_letters import get

    said = get(_open(), checked([letter_id])[0]).whole()
    if as_json:
        _print(said)
        return
    event, message = said.pop("event"), said.pop("message")
    table = Table(box=None, show_header=False)
    for name, value in said.items():
        if value is not None:
            shown = value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
            table.add_row(name.replace("_", " "), _plain(shown))
    _console().print(table)
    typer.echo(str(_plain(message)) if event is None else msgspec.json.format(event, indent=2))


@dlq.command()
@filtered
def replay(
    filters: "Wanted",
    letter_ids: Ids = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """Put events into the stream again, the oldest first.

    At most PRICING_REPLAYS_PER_S in a second, by everybody together; this command waits its turn. It may be
    interrupted and repeated. The exit code is 1 where one could not be replayed.

    Examples:

    - `pricing dlq replay 1763781600000-0`
    - `pricing dlq replay --all --reason "there is no 'P-7'"`
    """
    from app.services.dead_letters import Outcome, oldest_first, replay_all

    letters, outcome = _open(), Outcome()
    meant: Iterable[DeadLetter]
    if means_all(letter_ids, everything, filters):
        meant = oldest_first(letters, filters)
    else:
        meant = _those(letters, letter_ids or [], outcome.gone)
    total = letters.count() if everything else len(letter_ids or ())
    for _ in _shown(replay_all(letters, meant, time.sleep, outcome), "replaying", total, quiet=as_json):
        pass
    if as_json:
        replayed = [replayed._asdict() for replayed in outcome.replayed]
        refused = [{"letter_id": letter_id, "reason": why} for letter_id, why in outcome.refused.items()]
        _print({"replayed": replayed, "refused": refused, "gone": outcome.gone})
    else:
        typer.echo(f"{len(outcome.replayed):,} replayed.")
        for letter_id, why in outcome.refused.items():
            typer.echo(f"{letter_id} holds no event and cannot be replayed: {why}", err=True)
        _tell_gone([] if everything else outcome.gone)  # of all, others may take some at the same time
    raise typer.Exit(1 if outcome.refused or (outcome.gone and not everything) else 0)


@dlq.command()
@filtered
def discard(
    filters: "Wanted",
    letter_ids: Ids = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Throw dead letters away, for good. With --all it says how many, and asks.

    Example: `pricing dlq discard --all --until 30d`
    """
    from app.services.dead_letters import PAGE, oldest_first
    from app.services.dead_letters import discard as discard_those

    letters = _open()
    if means_all(letter_ids, everything, filters):
        chosen = [letter.letter_id for letter in oldest_first(letters, filters)]
        if chosen and not yes and not _confirmed(f"Discard {len(chosen):,} dead letters for good?"):
            fail("Nothing was discarded.")
    else:
        chosen = checked(letter_ids or [])
    discarded: list[str] = []
    gone: list[str] = []
    for start in range(0, len(chosen), PAGE):
        done = discard_those(letters, chosen[start : start + PAGE])
        discarded += done.discarded
        gone += done.gone
    if as_json:
        _print({"discarded": discarded, "gone": gone})
    else:
        typer.echo(f"{len(discarded):,} discarded.")
        _tell_gone([] if everything else gone)
    raise typer.Exit(1 if gone and not everything else 0)


def _open() -> "DeadLetters":
    from app.bootstrap import open_dead_letters
    from app.local.running import settings_of_running

    return open_dead_letters(settings_of_running(load_settings()))


def _those(letters: "DeadLetters", letter_ids: Sequence[str], gone: list[str]) -> "Iterator[DeadLetter]":
    for letter_id in checked(letter_ids):
        letter = letters.get(letter_id)
        if letter is None:
            gone.append(letter_id)
        else:
            yield letter


def _tell_gone(gone: Sequence[str]) -> None:
    for letter_id in gone:
        typer.echo(f"{letter_id} is not there: it was replayed or discarded before.", err=True)


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question)
    except typer.Abort:  # nobody is there to be asked
        return False


def _shown(steps: Iterator[None], what: str, total: int, quiet: bool) -> Iterator[None]:
    """The steps, with a bar once they take long, where somebody looks at a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    began = time.monotonic()
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        bar = bars.add_task(what, total=total, visible=False)
        for step in steps:
            bars.update(bar, advance=1, visible=time.monotonic() - began > _PATIENCE_S)
            yield step


def _console() -> "Console":
    """Wide where a program reads it, so that a letter is a line."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 400)


def _plain(text: str) -> "Text":
    """What came from outside, without the power to move the cursor or to be taken for markup."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def _age(letter: "DeadLetter") -> str:
    seconds = max(0, int(time.time()) - letter.dead_since // 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _print(content: dict[str, Any]) -> None:
    from app.api.answers import encode

    sys.stdout.buffer.write(encode(content) + b"\n")
