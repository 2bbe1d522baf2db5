"""`pricing top`: what the running system does at this moment, in the terminal."""

import signal
import threading
import time
from contextlib import suppress
from typing import Annotated

import typer

from app.commands import fail, load_settings


def top(
    once: Annotated[bool, typer.Option("--once", help="One picture, of the next interval; no live view.")] = False,
    interval_s: Annotated[float, typer.Option("--interval-s", min=0.1, help="Seconds between looks.")] = 2.0,
) -> None:
    """Show requests, latencies, cache hits, events, recalculations, breakers, locks, dead letters and processes, live.

    Figures "now" are of the last interval, those "in all" since the system was started. Ctrl-C ends it. Where the
    output is no terminal, it prints one picture as with --once.
    """
    from rich.console import Console
    from rich.live import Live

    from app.commands.top_looks import Looks
    from app.commands.top_picture import drawn
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.events_url is None:
        fail("Nothing runs here: start it with `pricing up`, or name its stores (see `pricing config`).")
    console = Console()
    with Looks(settings, settings.events_url.get_secret_value()) as looks:
        first = looks.look()
        if not first.anything:
            fail(f"Nothing runs: neither {looks.url} nor Redis answers. `pricing doctor` says more.")
        if once or not console.is_terminal:
            time.sleep(interval_s)
            console.print(drawn(looks.look()))
            return
        ended = threading.Event()

        def end(*_: object) -> None:
            ended.set()  # an exception alone may be lost: what is raised within a finalizer is
            raise KeyboardInterrupt

        # SIGTERM as Ctrl-C: the terminal gets back what it showed.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        with suppress(KeyboardInterrupt), Live(drawn(first), console=console, screen=True, auto_refresh=False) as live:
            while not ended.is_set():
                live.refresh()
                time.sleep(interval_s)
                live.update(drawn(looks.look()))
