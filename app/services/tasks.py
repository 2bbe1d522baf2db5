"""What people do with recalculations: look, cancel, resume."""

from app.domain.task import ENDED, Task, TaskState
from app.errors import NotFound, TaskEnded
from app.services.ports import Store, Transaction


def cancel(store: Store, task_id: str) -> Task:
    """Take a request back. Its work stops at the next batch, and what it has repriced stays; where others have
    joined it, they still get what they asked for. A cancelled task may be cancelled again. Raises `NotFound`, and
    `TaskEnded` where it has succeeded or failed."""
    with store.transaction() as tx:
        _hold(tx, task_id)
        shown = _shown(tx, task_id)
        if shown.state is TaskState.CANCELLED:
            return shown
        if shown.state in ENDED:
            raise TaskEnded(f"task {task_id!r} has {shown.state}")
        tx.tasks.end(task_id, TaskState.CANCELLED)
        tx.tasks.pass_on(task_id)
        return _shown(tx, task_id)


def resume(store: Store, task_id: str) -> Task:
    """Let a task that failed or was cancelled go on where it stopped, its failed parts with new attempts, within
    seconds; nothing happens to one that has not ended. Raises `NotFound`, and `TaskEnded` where it has succeeded."""
    with store.transaction() as tx:
        _, joined = _hold(tx, task_id)
        if joined is not None:
            _hold(tx, joined)
        shown = _shown(tx, task_id)
        if shown.state is TaskState.SUCCEEDED:
            raise TaskEnded(f"task {task_id!r} has succeeded: ask for a new one")
        if shown.state in ENDED:
            tx.tasks.resume(joined or task_id)
        return _shown(tx, task_id)


def _hold(tx: Transaction, task_id: str) -> tuple[str, str | None]:
    held = tx.tasks.hold(task_id)
    if held is None:
        raise NotFound(f"there is no task {task_id!r}")
    return held


def _shown(tx: Transaction, task_id: str) -> Task:
    task = tx.tasks.get(task_id)
    if task is None:
        raise NotFound(f"there is no task {task_id!r}")
    return task
