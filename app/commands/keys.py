"""`pricing keys`: who may call, and what."""

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import fail, load_settings
from app.commands.key_arguments import KeyArgument, at, duration_s, rate

if TYPE_CHECKING:
    from app.adapters.store import Store
    from app.domain.api_key import ApiKey, KeyHash

keys = typer.Typer(
    no_args_is_help=True,
    help="""API keys of consumers.

    A key is shown when it is made, and never again. Every API process honours a change within two seconds. These
    commands work with the database itself, so that they need no key; each change is a line of the log, on stderr.
    """,
)

Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@keys.command()
def create(
    consumer: Annotated[str, typer.Argument(help="The id of who gets it, such as shop-web.")],
    scopes: Annotated[
        list[str], typer.Option("--scope", help="read, publish or admin, which includes both; may be given repeatedly.")
    ],
    name: Annotated[str | None, typer.Option(help="What people call this consumer.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="In 90d, 12h, 30m, or at an ISO 8601 time. Left out: never.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(metavar="RATE", help="Requests, such as 50/s, 6000/min, 100000/h. Left out: no limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print it.

    Example: `pricing keys create shop-web --scope read --limit 6000/min --expires 365d`
    """
    from pydantic import ValidationError

    from app.domain.api_key import NewKey
    from app.domain.events import problems
    from app.services.keys import create as create_key

    given = {
        "consumer_id": consumer,
        "consumer_name": name,
        "scopes": scopes,
        "expires_at": at("--expires", expires),
        "rate_limit": rate(limit),
    }
    try:
        wanted = NewKey.model_validate(given)
    except ValidationError as error:
        fail("; ".join(f"{path}: {message}" for path, message in problems(error)))
    with _open() as (store, key_hash):
        _show(*create_key(store, key_hash, wanted, _who()), as_json)


@keys.command("list")
def list_keys(
    consumer: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are revoked or have expired.")] = False,
    as_json: Json = False,
) -> None:
    """What keys there are, and what they are good for."""
    from datetime import UTC

    from rich.console import Console
    from rich.table import Table

    from app.services.keys import every_key

    with _open() as (store, _):
        now = datetime.now(UTC)
        found = [key for key in every_key(store, consumer) if everything or key.usable(now)]
    if as_json:
        _print({"items": [key.model_dump() for key in found]})
        return
    table = Table("key", "consumer", "scopes", "limit", "created", "ends", "rotated from", box=None)
    for key in found:
        limit = f"{key.rate_limit.requests:,} in {key.rate_limit.window_s:,} s" if key.rate_limit else ""
        ends = f"revoked {_day(key.revoked_at)}" if key.revoked_at else _day(key.expires_at)
        scopes, came_from = " ".join(key.scopes), key.rotated_from or ""
        table.add_row(key.key_id, key.consumer_id, scopes, limit, _day(key.created_at), ends, came_from)
    Console(width=None if sys.stdout.isatty() else 400).print(table)


@keys.command()
def rotate(
    key_id: KeyArgument,
    overlap: Annotated[str, typer.Option(metavar="DURATION", help="How long the old key goes on: 1d, 2h, 0s.")] = "1d",
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="As for create. Left out: after as long as the old one was for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key in the place of another, and print it; the old one goes on for a while, then expires."""
    from app.services.keys import rotate as rotate_key

    overlap_s, expires_at = duration_s("--overlap", overlap), at("--expires", expires)
    with _open() as (store, key_hash):
        _show(*rotate_key(store, key_hash, key_id, overlap_s, expires_at, _who()), as_json)


@keys.command()
def revoke(key_id: KeyArgument) -> None:
    """End a key at once and for good."""
    from app.services.keys import revoke as revoke_key

    with _open() as (store, _):
        key = revoke_key(store, key_id, _who())
    typer.echo(f"{key.key_id} of {key.consumer_id} is revoked; within two seconds nobody takes it any more.")


@keys.command()
def first() -> None:
    """What the first start needs: the secret in PRICING_KEY_SECRET_FILE, and an admin key, which is printed.

    What is there already stays as it is, so this can be run at every start.
    """
    from app.bootstrap import make_first_key
    from app.local.keys import make_secret
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.key_secret is None and settings.key_secret_file is not None:
        make_secret(settings.key_secret_file)
    key = make_first_key(settings)
    if key is None:
        typer.echo("There is an admin key already.")
    else:
        typer.echo(f"The first admin key; it is printed this once:\n\n  {key}\n")


@contextmanager
def _open() -> "Iterator[tuple[Store, KeyHash]]":
    from app.bootstrap import open_key_store
    from app.local.running import settings_of_running
    from app.observability.logging import configure_logging

    settings = settings_of_running(load_settings())
    configure_logging(settings, "pricing keys")
    with open_key_store(settings) as opened:
        yield opened


def _who() -> str:
    return f"{getpass.getuser()}, by command"


def _show(key: str, made: "ApiKey", as_json: bool) -> None:
    if as_json:
        _print({"key": key, **made.model_dump()})
    else:
        typer.echo(f"The key of {made.consumer_id}, {' and '.join(made.scopes)}; it is printed this once:\n\n  {key}\n")


def _print(content: dict[str, Any]) -> None:
    from app.api.answers import encode

    sys.stdout.buffer.write(encode(content) + b"\n")


def _day(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M}"
