"""Recalculations: how far they are."""

import anyio.to_thread
from fastapi import APIRouter, Response

from app.api.answers import answer
from app.api.deps import Deps
from app.api.problems import documented
from app.domain.rules import Id
from app.domain.task import Task, TaskState
from app.errors import NotFound
from app.services.ports import Store

router = APIRouter(prefix="/api/v1", tags=["tasks"])


@router.get("/tasks/{task_id}", response_model=Task, responses=documented(404, 503), summary="Progress of a task")
async def get_task(task_id: Id, deps: Deps) -> Response:
    """State and progress of a recalculation: of POST /recalculate, or of an event that concerned many prices."""
    task, processed = await anyio.to_thread.run_sync(_find, deps.store, task_id)
    if task is None and not processed and await deps.publisher.known(task_id):
        task = Task(task_id=task_id, state=TaskState.QUEUED, done=0)
    if task is None:
        raise NotFound(f"there is no task {task_id!r}")
    return answer(task)


def _find(store: Store, task_id: str) -> tuple[Task | None, bool]:
    """The task, and whether the event of that id has been processed, with or without one."""
    with store.transaction() as tx:
        return tx.tasks.get(task_id), tx.events.processed(task_id)
