"""The `pricing` command: one function per command, in the order of --help.

Each imports what it needs when it runs, so that --help is quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands import fail, load_settings
from app.commands.breakers import breakers
from app.commands.dlq import dlq
from app.commands.import_catalog import import_catalog
from app.commands.keys import keys
from app.commands.log_level import log_level
from app.commands.replay import replay
from app.commands.tasks import tasks
from app.commands.telemetry import telemetry
from app.commands.top import top

app = typer.Typer(
    help="Answers what a product costs, here, now, for this customer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address that the API listens on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port that the API listens on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Gunicorn worker processes.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for the embedded stores' data and for logs.")] = None,
    catalog: Annotated[
        str | None, typer.Option(help="What to fill an empty database with: sample, none, or a path.")
    ] = None,
) -> None:
    """Start everything on this machine: stores, API, worker and listener. Ctrl-C stops it.

    Each option is also a setting, such as PRICING_PORT: see `pricing config`.
    """
    from rich.console import Console

    from app.local.up import up

    given = {"host": host, "port": port, "workers": workers, "data": data, "catalog": catalog}
    up(load_settings(**{name: value for name, value in given.items() if value is not None}), Console())


@app.command()
def doctor() -> None:
    """Check every setting and everything that the service depends on; say how to mend what is wrong."""
    from rich.console import Console

    from app.local.doctor import examine

    raise typer.Exit(examine(Console()))


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    from app.adapters.database import migrate
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.database_url is None:
        fail("No database is named: set PRICING_DATABASE_URL, or start one with `pricing up`.")
    migrate(settings.database_url.get_secret_value())


@app.command()
def config(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/configuration.md, with defaults only.")
    ] = False,
) -> None:
    """Print every setting: its variable, its value now (secrets masked), its default, what it is for."""
    from rich.console import Console

    from app.local.configuration import as_markdown, as_text

    if markdown:
        sys.stdout.write(as_markdown())
    else:
        Console().print(as_text(load_settings()), end="", soft_wrap=True)


@app.command()
def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/metrics.md.")] = False,
) -> None:
    """Print every metric that the service counts, and what it means."""
    from rich.console import Console

    from app.local.metric_pages import as_markdown, as_text

    if markdown:
        sys.stdout.write(as_markdown())
    else:
        Console().print(as_text(), end="", soft_wrap=True)


app.command()(top)
app.command("import")(import_catalog)
app.command()(replay)
app.command()(breakers)
app.command()(log_level)
app.add_typer(keys, name="keys")
app.add_typer(tasks, name="tasks")
app.add_typer(dlq, name="dlq")
app.add_typer(telemetry, name="telemetry")

cache = typer.Typer(help="The shared cache of prices.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command()
def clear() -> None:
    """Forget every cached price, also what would be served in an outage, here and in every API process.

    Nothing is lost: whoever asks next gets the price from the database, so do this while the database answers.
    """
    from app.adapters.price_cache import clear as clear_prices
    from app.adapters.redis_clients import make_redis
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.cache_url is None:
        fail("No cache is named: set PRICING_CACHE_URL, or start one with `pricing up`.")
    with make_redis(settings.cache_url.get_secret_value(), settings.store_timeout_s) as client:
        cleared = clear_prices(client)
    typer.echo(f"{cleared:,} cached prices were forgotten; every API process forgets its own.")


def main() -> None:
    """Run the command; whatever a person can mend is one sentence and exit code 1, never a traceback."""
    from app.errors import PricingError
    from app.local import SetUpError

    try:
        app()
    except (SetUpError, PricingError) as error:
        fail(str(error))


if __name__ == "__main__":
    main()
