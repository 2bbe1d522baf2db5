"""`pricing breakers`: what the background work is being kept from, and why."""

from typing import Annotated

import typer

from app.commands import fail, load_settings


def breakers(
    reset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Close this one, and forget what it has counted.")
    ] = None,
) -> None:
    """Show the circuit breakers that listeners and workers share, one per store and one per kind of work.

    closed: work goes on. open: too much has failed, and nothing is begun that needs it; events wait. half open: one try
    at a time finds out whether it is over. They close by themselves; --reset is for when you know that it is over.
    """
    from rich.console import Console
    from rich.table import Table

    from app.adapters.breakers import NAMES, Breakers
    from app.adapters.redis_clients import make_redis
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.events_url is None:
        fail("No broker is named: set PRICING_BROKER_URL or PRICING_CACHE_URL, or start one with `pricing up`.")
    if reset is not None and reset not in NAMES:
        fail(f"There is no breaker {reset}: the names are {', '.join(NAMES)}.")
    with make_redis(settings.events_url.get_secret_value(), settings.store_timeout_s) as client:
        shared = Breakers(client)
        if reset is not None:
            shared.reset(reset)
        table = Table("breaker", "state", "good", "bad", "last reason", box=None)
        for name, tally in shared.tallies().items():
            table.add_row(name, tally.state.value.replace("_", " "), f"{tally.good:,}", f"{tally.bad:,}", tally.reason)
        Console().print(table)
