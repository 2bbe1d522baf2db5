"""`pricing tasks`: recalculations, how far they are, and stopping them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import fail, load_settings

if TYPE_CHECKING:
    from app.adapters.store import Store
    from app.domain.task import Task

tasks = typer.Typer(help="Recalculations of many prices.", no_args_is_help=True)

LOOK_S = 0.5
"""How often --follow looks, in seconds."""

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id, which is its event's.")]


@tasks.command("list")
def list_tasks(
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as running or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
) -> None:
    """The newest recalculations, one per line."""
    from rich.console import Console
    from rich.table import Table

    from app.domain.task import TaskState

    if state is not None and state not in set(TaskState):
        fail(f"--state is one of {', '.join(TaskState)}")
    with _open_store() as store, store.transaction() as tx:
        page = tx.tasks.page(TaskState(state) if state else None, None, limit)
    table = Table("task", "state", "done", "total", "changed", "created", "error", box=None)
    for task in page:
        total = "" if task.total is None else f"{task.total:,}"
        created = f"{task.created_at:%Y-%m-%d %H:%M:%S}" if task.created_at else ""
        table.add_row(task.task_id, task.state, f"{task.done:,}", total, f"{task.changed:,}", created, task.error or "")
    Console().print(table)


@tasks.command()
def show(
    task_id: TaskId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until it has ended; exit code 1 if not well.")
    ] = False,
) -> None:
    """How far a recalculation is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from app.domain.task import ENDED, TaskState

    with _open_store() as store:
        task = _get(store, task_id)
        if follow:
            console = Console()
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
                bar = bars.add_task(task.state, total=task.total)
                while task.state not in ENDED:
                    time.sleep(LOOK_S)
                    task = _get(store, task_id)
                    bars.update(bar, description=task.state, completed=task.done, total=task.total)
    for line in _lines(task):
        typer.echo(line)
    raise typer.Exit(1 if follow and task.state is not TaskState.SUCCEEDED else 0)


@tasks.command()
def cancel(task_id: TaskId) -> None:
    """Stop a recalculation at its next batch; what it has repriced stays."""
    from app.services.tasks import cancel

    with _open_store() as store:
        task = cancel(store, task_id)
    typer.echo(f"Task {task.task_id} is {task.state}: {task.done:,} prices were looked at.")


@tasks.command()
def resume(task_id: TaskId) -> None:
    """Let a recalculation that failed or was cancelled go on where it stopped, within seconds."""
    from app.services.tasks import resume

    with _open_store() as store:
        task = resume(store, task_id)
    typer.echo(f"Task {task.task_id} is {task.state}.")


@contextmanager
def _open_store() -> Iterator["Store"]:
    from app.adapters.database import make_engine
    from app.adapters.store import Store
    from app.local.running import settings_of_running

    settings = settings_of_running(load_settings())
    if settings.database_url is None:
        fail("No database is named: set PRICING_DATABASE_URL, or start one with `pricing up`.")
    store = Store(make_engine(settings.database_url.get_secret_value(), pool_size=1))
    try:
        yield store
    finally:
        store.close()


def _get(store: "Store", task_id: str) -> "Task":
    with store.transaction() as tx:
        task = tx.tasks.get(task_id)
    if task is None:
        fail(f"There is no task {task_id}.")
    return task


def _lines(task: "Task") -> Iterator[str]:
    """What is known of a task, a fact per line."""
    total = "unknown" if task.total is None else f"{task.total:,}"
    yield f"Task {task.task_id}: {task.state}"
    if task.joined is not None:
        yield f"  joined      {task.joined}, which does the same"
    yield f"  looked at   {task.done:,} of {total} prices, of which {task.changed:,} changed"
    if task.parts:
        yield f"  parts       {task.parts_succeeded} of {task.parts} succeeded, {task.parts_failed} failed"
    if task.rate is not None:
        yield f"  speed       {task.rate:,.0f} prices/s"
    if task.expected_end is not None:
        yield f"  expected    {task.expected_end:%Y-%m-%d %H:%M:%S %Z}"
    if task.error is not None:
        yield f"  error       {task.error}"
