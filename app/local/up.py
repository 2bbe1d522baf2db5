"""`pricing up`: the whole system on this machine, from one command to one Ctrl-C."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import AnyUrl, SecretStr
from rich.console import Console

from app.local import SetUpError, embedded, jaeger, keys, stores, victoriametrics
from app.local.addresses import api_url, is_ready
from app.local.machine import check_port, metrics_folder, prepare_data, sole_user_of
from app.local.processes import service
from app.local.running import forget, record, stop_leftovers
from app.local.stopping import Stopped, StopSignals
from app.local.supervisor import Child, Supervisor, exited
from app.settings import Settings

STORE_TIMEOUT_S = 120.0  # a database that was killed first replays its log
READY_TIMEOUT_S = 90.0
TICK_S = 0.1
DATABASE = "pricing"


class Up:
    """One run. `begin` may be cut short by `Stopped` at any moment; `end` always undoes it."""

    def __init__(self, settings: Settings, console: Console, signals: StopSignals) -> None:
        self.data = settings.data
        self.settings = settings
        self.console = console
        self.signals = signals
        self.metrics: Path | None = None
        self.supervisor = Supervisor(self.say, self.record)

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; what runs must still be stopped
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def record(self) -> None:
        record(self.data, self.settings, self.supervisor.running())

    def begin(self) -> None:
        """From nothing to a system that answers. Raises SetUpError or Stopped."""
        began = time.monotonic()
        stop_leftovers(self.data, self.say)
        check_port(self.settings.host, self.settings.port)
        check_catalog(self.settings.catalog)
        stores.check_named_stores(self.settings)
        self.start_stores()
        database_url = self.settings.database_url
        assert database_url is not None
        with self.console.status("Migrating the database"), self.signals.interruptible():
            migrate(database_url.get_secret_value())
        with self.signals.interruptible():
            fill_catalog(self.settings, self.settings.catalog, self.console)
        first_key = self.make_keys()
        if self.settings.otlp_endpoint is None and jaeger.is_there():
            self.settings = self.settings.model_copy(update={"otlp_endpoint": AnyUrl(jaeger.OTLP)})
        if self.settings.victoriametrics_url is None and victoriametrics.is_there():
            url = SecretStr(victoriametrics.URL)
            self.settings = self.settings.model_copy(update={"victoriametrics_url": url})
        self.start_service()
        self.say(greeting(self.settings, time.monotonic() - began, first_key))

    def keep(self) -> None:
        """Restart whoever dies, until `Stopped`."""
        while True:
            self.supervisor.tick()
            self.signals.pause(TICK_S)

    def end(self) -> None:
        """Stop what was started, in reverse; a second signal makes it quicker."""
        self.supervisor.stop(hurry=lambda: self.signals.count > 1)
        forget(self.data)
        if self.metrics is not None and self.settings.metrics_dir is None:
            shutil.rmtree(self.metrics, ignore_errors=True)

    def start_stores(self) -> None:
        """Embed each store that the settings do not name."""
        logs, urls = self.data / "logs", {}
        if self.settings.database_url is None:
            with self.console.status("Starting PostgreSQL"):
                postgres, url = embedded.postgres(self.data, logs / "postgres.log")
                self.supervisor.start(postgres)
                self.wait_for(postgres, lambda: stores.answers(url), STORE_TIMEOUT_S)
                stores.create_database(url, DATABASE)
            urls["database_url"] = SecretStr(url.replace("/postgres?", f"/{DATABASE}?"))
            self.say("PostgreSQL is up")
        if self.settings.events_url is None:
            with self.console.status("Starting Valkey, the broker"):
                urls["broker_url"] = self.start_valkey(embedded.broker(self.data, logs / "broker.log"))
            self.say("Valkey is up, the broker")
        if self.settings.cache_url is None:
            with self.console.status("Starting Valkey, the cache"):
                urls["cache_url"] = self.start_valkey(embedded.cache(self.data, logs / "cache.log"))
            self.say("Valkey is up, the cache")
        self.settings = self.settings.model_copy(update=urls)

    def start_valkey(self, valkey: tuple[Child, str]) -> SecretStr:
        """Returns its address when it answers there."""
        child, url = valkey
        self.supervisor.start(child)
        self.wait_for(child, lambda: stores.answers(url), STORE_TIMEOUT_S)
        return SecretStr(url)

    def make_keys(self) -> str | None:
        """The secret that keys are hashed with, unless one is set, and an admin key, unless there is one: that key."""
        if self.settings.key_secret is None and self.settings.key_secret_file is None:
            secret = self.data / keys.SECRET
            keys.make_secret(secret)
            self.settings = self.settings.model_copy(update={"key_secret_file": secret})
        key = first_key(self.settings)
        if key is not None:
            keys.keep_admin_key(self.data, key)
        return key

    def start_service(self) -> None:
        """Worker, listener and API; returns when the API says that it is ready."""
        self.metrics = metrics_folder(self.settings.metrics_dir, self.data)
        with self.console.status("Starting the API, the worker and the listener"):
            for child in service(self.settings, self.metrics, self.data / "logs"):
                self.supervisor.start(child)
            self.wait_for(child, lambda: is_ready(api_url(self.settings)), READY_TIMEOUT_S)

    def wait_for(self, child: Child, answers: Callable[[], bool], timeout_s: float) -> None:
        """Until `child` answers. Whoever dies meanwhile ends the start: it would die again."""
        began = time.monotonic()
        while not answers():
            for other in self.supervisor.children:
                if other.process and exited(other.process.pid):
                    raise SetUpError(failure(other, "stopped while starting"))
            if time.monotonic() - began > timeout_s:
                raise SetUpError(failure(child, f"was not ready within {timeout_s:g} s"))
            self.signals.pause(TICK_S)


def up(settings: Settings, console: Console) -> None:
    """Start everything, keep it running until SIGINT or SIGTERM, then stop it in order.

    Raises SetUpError where a person has to mend something first.
    """
    settings = settings.model_copy(update={"data": prepare_data(settings.data)})
    with sole_user_of(settings.data), StopSignals() as signals:
        run = Up(settings, console, signals)
        try:
            run.begin()
            run.keep()
        except Stopped:
            run.say("Stopping")
        finally:
            run.end()
        run.say("Stopped")


def migrate(url: str) -> None:
    """Bring the database to the newest schema."""
    from app.adapters.database import migrate  # slow to import, and not needed to refuse a start

    migrate(url)


def fill_catalog(settings: Settings, catalog: str, console: Console) -> None:
    """Load `catalog` (`sample`, `completejourney`, or a path) into an empty database; `none` leaves it empty."""
    from app.catalog.reporting import Refusals, progress_bars  # slow to import, as above
    from app.catalog.sources import fill

    with progress_bars(console) as progress, Refusals(None, shown=20) as refusals:
        result = fill(settings, catalog, progress, refusals.add)
    for line in refusals.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if result is not None:
        console.print(f"The catalogue is in: {result.sheets:,} prices", markup=False, highlight=False)
    elif catalog != "none":
        console.print(f"The database has products already; the catalogue {catalog} was not loaded", markup=False)


def first_key(settings: Settings) -> str | None:
    """An admin key where the database has none that works."""
    from app.bootstrap import make_first_key  # slow to import, as above

    return make_first_key(settings)


def check_catalog(catalog: str) -> None:
    """A catalogue that is a path exists."""
    if catalog not in ("sample", "completejourney", "none") and not Path(catalog).exists():
        raise SetUpError(
            f"There is no catalogue {catalog}: "
            "give --catalog or PRICING_CATALOG the path of one, `sample`, `completejourney` or `none`."
        )


def failure(child: Child, what: str) -> str:
    """What a child did, and the end of its log."""
    return f"{child.name} {what}: see {child.log}, which ends with\n{child.last_lines()}"


def greeting(settings: Settings, seconds: float, first_key: str | None) -> str:
    """What to print when all is well; the key that was made, if one was, this once."""
    url = api_url(settings)
    question = '{"product_id":"P-100","user_location":"NY","is_prime_member":true}'
    return (
        f"\nReady in {seconds:.1f} s. Ctrl-C stops everything.\n\n"
        f"  API      {url}/api/v1\n"
        f"  Docs     {url}/docs\n"
        f"  Metrics  {url}/metrics\n"
        f"  Traces   {traces(settings)}\n"
        f"  Usage    {usage(settings)}\n"
        f"  Logs     {settings.data / 'logs'}\n\n"
        f"{told(first_key, settings.data)}"
        "Ask for a price:\n\n"
        f"  curl -s {url}/api/v1/price -H 'content-type: application/json' -d '{question}'\n"
    )


def told(first_key: str | None, data: Path) -> str:
    """A key, which is told nobody else and never again."""
    if first_key is None:
        return ""
    return (
        "Whoever changes anything shows an API key. This one may do everything; it is printed this once, and kept in\n"
        f"{data / keys.ADMIN_KEY} for the commands of this machine:\n\n  {first_key}\n\n"
    )


def usage(settings: Settings) -> str:
    """Where records of requests are."""
    if settings.telemetry == "off":
        return "not recorded (PRICING_TELEMETRY)"
    there = f"{api_url(settings)}/api/v1/usage"
    if settings.victoriametrics_url is None:
        return f"{there} (graphs: `make victoriametrics` gets VictoriaMetrics, and the next start finds it)"
    own = settings.victoriametrics_url.get_secret_value() == victoriametrics.URL
    return f"{there}, graphs: {victoriametrics.PAGE if own else 'in VictoriaMetrics'}"


def traces(settings: Settings) -> str:
    """Where traces are, or how to get them."""
    if settings.otlp_endpoint is None:
        return "kept nowhere: `make jaeger` gets Jaeger and starts it, and the next start finds it"
    where = jaeger.PAGE if str(settings.otlp_endpoint).rstrip("/") == jaeger.OTLP else f"go to {settings.otlp_endpoint}"
    return f"{where} ({settings.trace_sample_ratio:.0%} of requests: PRICING_TRACE_SAMPLE_RATIO)"
