"""Recalculations: how far they are; cancelling and resuming them."""

from collections.abc import Callable
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Response

from app.api.answers import answer
from app.api.deps import Deps, read
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import TaskPage
from app.bootstrap import ApiResources
from app.domain.api_key import Scope
from app.domain.rules import Id
from app.domain.task import Task, TaskState
from app.errors import Conflict, NotFound
from app.services import tasks
from app.services.ports import Store

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"], route_class=GuardedRoute)


@router.get(
    "", dependencies=[needs(Scope.READ)], response_model=TaskPage, responses=documented(404, 503), summary="List tasks"
)
async def list_tasks(
    deps: Deps,
    state: Annotated[TaskState | None, Query(description="Only those in this state.")] = None,
    before: Annotated[Id | None, Query(description="Only those older than this task.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Recalculations, the newest first. Those that ended are forgotten after PRICING_RETENTION_DAYS."""
    items = await read(deps, _page, deps.store, state, before, limit + 1)
    next_before = items[limit - 1].task_id if len(items) > limit else None
    return answer({"items": [item.model_dump() for item in items[:limit]], "next_before": next_before})


@router.get(
    "/{task_id}",
    dependencies=[needs(Scope.READ)],
    response_model=Task,
    responses=documented(404, 503),
    summary="Progress of a task",
)
async def get_task(task_id: Id, deps: Deps) -> Response:
    """State and progress of a recalculation: of POST /recalculate, or of an event that concerned many prices."""
    task, processed = await read(deps, _find, deps.store, task_id)
    if task is None and not processed and await deps.publisher.known(task_id):
        task = Task(task_id=task_id, event_id=task_id, state=TaskState.QUEUED, done=0)
    if task is None:
        raise NotFound(f"there is no task {task_id!r}")
    return answer(task)


@router.post(
    "/{task_id}/cancel",
    dependencies=[needs(Scope.ADMIN)],
    response_model=Task,
    responses=documented(404, 409, 503),
    summary="Cancel a task",
)
async def cancel_task(task_id: Id, deps: Deps) -> Response:
    """It stops at its next batch; what it has repriced stays. Requests that have joined it are still served.
    Cancelling it again changes nothing; 409 where it has succeeded or failed, or has not been looked at yet."""
    return answer(await _change(deps, tasks.cancel, task_id))


@router.post(
    "/{task_id}/resume",
    dependencies=[needs(Scope.ADMIN)],
    response_model=Task,
    responses=documented(404, 409, 503),
    summary="Resume a task",
)
async def resume_task(task_id: Id, deps: Deps) -> Response:
    """A task that failed or was cancelled goes on where it stopped, within seconds; 409 where it has succeeded."""
    return answer(await _change(deps, tasks.resume, task_id))


async def _change(deps: ApiResources, change: Callable[[Store, str], Task], task_id: str) -> Task:
    try:
        return await anyio.to_thread.run_sync(change, deps.store, task_id)
    except NotFound:
        task, processed = await anyio.to_thread.run_sync(_find, deps.store, task_id)
        if task is not None or (not processed and await deps.publisher.known(task_id)):
            raise Conflict(f"task {task_id!r} waits for its event to be read: try again in a moment") from None
        raise


def _find(store: Store, task_id: str) -> tuple[Task | None, bool]:
    """The task, and whether the event of that id has been processed, with or without one. In this order: a task and
    its event are committed together, so one that is processed by then has its task when that is looked for."""
    with store.reading() as tx:
        processed = tx.events.processed(task_id)
        return tx.tasks.get(task_id), processed


def _page(store: Store, state: TaskState | None, before: str | None, limit: int) -> list[Task]:
    with store.reading() as tx:
        return tx.tasks.page(state, before, limit)
