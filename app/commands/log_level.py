"""`pricing log-level`: what the running processes write down."""

from enum import StrEnum
from typing import Annotated

import typer

from app.commands import fail, load_settings


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    DEFAULT = "default"


def log_level(
    level: Annotated[Level | None, typer.Argument(help="default: what each has in its settings.")] = None,
    minutes: Annotated[
        float, typer.Option("--for", metavar="MINUTES", min=0.01, max=1440, help="Then it goes back by itself.")
    ] = 15,
) -> None:
    """Show the least severe log level that is written, or change it, in every process, without a restart.

    Within a second or two API processes, listeners, workers and the exporter follow, also those that start later. The
    parents of the API's and the workers' processes, which only start others, keep the level of their settings.
    """
    from app.adapters.log_level import LogLevel
    from app.adapters.redis_clients import make_redis
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.events_url is None:
        fail("No broker is named: set PRICING_BROKER_URL or PRICING_CACHE_URL, or start one with `pricing up`.")
    with make_redis(settings.events_url.get_secret_value(), settings.store_timeout_s) as client:
        shared = LogLevel(client)
        if level is Level.DEFAULT:
            shared.take_back()
        elif level is not None:
            shared.say(level, minutes * 60)
        said = shared.said()
    if said is None:
        typer.echo("Every process writes what its settings say (PRICING_LOG_LEVEL).")
    else:
        typer.echo(f"Every process writes {said.level} and above for {said.left_s / 60:,.1f} more minutes.")
