"""How `pricing top` shows a look: full width for requests and recalculations, two columns for the rest."""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from app.commands.top_looks import Look, Queues
from app.domain.task import Task
from app.observability.scrape import Scrape
from app.services.ports import BreakerState

DURATION = "pricing_http_request_duration_seconds"
OWN = ("/metrics", "/healthz", "/readyz")
"""Routes of those who watch, of whom we are one."""

MOST_ROUTES = 6
SOURCES = ("near_cache", "cache", "database", "stale", "unknown", "unavailable")
KINDS = ("api", "listener", "worker", "jobs")
LATE_S = 30.0
"""An event that waits longer is late: the alert on it says the same."""

UNKNOWN = "–"


def drawn(look: Look) -> RenderableType:
    """One picture, of about 30 lines at a width of 80."""
    head = Text.assemble(("pricing", "bold"), f"  {look.url}  {look.at:%H:%M:%S}")
    if look.seconds:
        head.append(f"  now: the last {look.seconds:.1f} s", "dim")
    parts: list[RenderableType] = [head, *(Text(line, "bold red") for line in look.silent), Text()]
    if look.counted is not None:
        parts += [_requests(look.counted, look.lately, look.seconds), Text()]
    columns = Table.grid(Column(ratio=1), Column(ratio=1), padding=(0, 2), expand=True)
    left: list[RenderableType] = []
    if look.counted is not None:
        left = [_prices(look.counted, look.lately), Text(), _processes(look.counted)]
    right: list[RenderableType] = [_events(look)]
    if look.queues is not None:
        right += [Text(), _guards(look.queues, look.counted)]
    columns.add_row(Group(*left), Group(*right))
    parts += [columns, Text(), _tasks(look.tasks)]
    return Group(*parts)


def _requests(counted: Scrape, lately: Scrape | None, seconds: float) -> Table:
    table = _table(Column("requests", no_wrap=True, ratio=1), *_right("per s", "in all", "p50 ms", "p95", "p99", "5xx"))
    routes = {route: count for route, count in counted.by(f"{DURATION}_count", "route").items() if route not in OWN}
    recent = {} if lately is None else lately.by(f"{DURATION}_count", "route")
    busiest = sorted(routes, key=lambda route: (-recent.get(route, 0.0), -routes[route]))
    for route in busiest[:MOST_ROUTES]:
        table.add_row(
            Text(route, overflow="ellipsis"),
            _rate(recent.get(route, 0.0), seconds),
            f"{routes[route]:,.0f}",
            *(_ms(lately, route, share) for share in (0.5, 0.95, 0.99)),
            _alarming(_server_errors(counted, route)),
        )
    others = len(busiest) - MOST_ROUTES
    if not busiest or others > 0:
        table.add_row(Text(f"and {others} other routes" if busiest else "none yet", "dim"))
    return table


def _server_errors(counted: Scrape, route: str) -> int:
    by_status = counted.by(f"{DURATION}_count", "status", route=route)
    return int(sum(count for status, count in by_status.items() if status.startswith("5")))


def _prices(counted: Scrape, lately: Scrape | None) -> Table:
    table = _table("prices from", *_right("now", "in all", "quotes"))
    quotes = counted.by("pricing_quotes_total", "source")
    recent = {} if lately is None else lately.by("pricing_quotes_total", "source")
    for source in SOURCES:
        own = quotes.get(source, 0.0), recent.get(source, 0.0)
        table.add_row(
            source.replace("_", " "),
            _share(own[1], sum(recent.values())),
            _share(own[0], sum(quotes.values())),
            f"{own[0]:,.0f}",
        )
    return table


def _events(look: Look) -> Table:
    table = _table("events", *_right("", "per s"))
    if look.counted is not None:
        for name, metric, labels in (
            ("published", "pricing_events_published_total", {}),
            ("applied", "pricing_events_processed_total", {"status": "applied"}),
        ):
            recent = 0.0 if look.lately is None else look.lately.sum(metric, **labels)
            table.add_row(name, f"{look.counted.sum(metric, **labels):,.0f}", _rate(recent, look.seconds))
    if look.queues is not None:
        queues = look.queues
        table.add_row("stream length", f"{queues.length:,}")
        table.add_row("not read", f"{queues.unread:,}")
        table.add_row("not applied", f"{queues.pending:,}")
        table.add_row("oldest unapplied", _alarming(queues.oldest_s, LATE_S, f"{queues.oldest_s:,.1f} s"))
        table.add_row("dead letters", _alarming(queues.dead_letters))
    return table


def _processes(counted: Scrape) -> Table:
    table = _table("processes", *_right("", "tasks queued"))
    living = counted.by("pricing_processes", "kind")
    queued = counted.by("pricing_task_queue_length", "queue")
    for kind, queue in zip(KINDS, ("", "", "pricing", "pricing.jobs"), strict=True):
        count = int(living.get(kind, 0))
        table.add_row(
            kind, Text(str(count), "" if count else "bold red"), f"{queued[queue]:,.0f}" if queue in queued else ""
        )
    return table


def _guards(queues: Queues, counted: Scrape | None) -> Table:
    """Breakers that are not closed, with the reason, and locks."""
    table = _table("breakers and locks", Column("", ratio=1))
    table.show_header = False
    tripped = {name: tally for name, tally in queues.breakers.items() if tally.state is not BreakerState.CLOSED}
    for name, tally in tripped.items():
        table.add_row(f"breaker {name}", Text(f"{tally.state.value.replace('_', ' ')}: {tally.reason}", "bold red"))
    if not tripped:
        table.add_row("breakers", "all closed")
    table.add_row("locks held", f"{len(queues.locks)} {_few(queues.locks)}")
    if counted is not None:
        table.add_row("locks lost", _alarming(int(counted.sum("pricing_lock_lost_total"))))
    return table


def _tasks(tasks: list[Task] | None) -> Table:
    columns = [Column("recalculations", no_wrap=True), Column("state"), Column("", ratio=1)]
    table = _table(*columns, *_right("done", "total", "per s", "left"))
    for task in tasks or ():
        table.add_row(
            task.task_id[:13],
            task.state,
            ProgressBar(task.total or 1, task.done),
            f"{task.done:,}",
            UNKNOWN if task.total is None else f"{task.total:,}",
            UNKNOWN if task.rate is None else f"{task.rate:,.0f}",
            UNKNOWN if task.eta_seconds is None else _time(task.eta_seconds),
        )
    if not tasks:
        table.add_row(Text("unknown" if tasks is None else "none", "dim"))
    return table


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold cyan")


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds else UNKNOWN


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else UNKNOWN


def _ms(lately: Scrape | None, route: str, share: float) -> str:
    seconds = None if lately is None else lately.quantile(DURATION, share, route=route)
    return UNKNOWN if seconds is None else f"{seconds * 1000:,.2f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _alarming(value: float, limit: float = 0, shown: str = "") -> Text:
    return Text(shown or f"{value:,}", "bold red" if value > limit else "")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
