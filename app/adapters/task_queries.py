"""Tasks as people are shown them: with their progress, and for those that joined another, that one's."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from app.adapters.schema import task_batches, task_parts, tasks
from app.domain.task import EVENT_CAUSE, Task, TaskState

RATE_WINDOW_S = 30.0
"""How far back the present speed is measured."""

_LEAST_S = 0.5
"""A speed over less time says nothing."""

_asked, _did, _twin = tasks.alias("asked"), tasks.alias("did"), tasks.alias("twin")

_state = sa.case(
    (
        sa.and_(
            _did.c.state == TaskState.QUEUED,
            sa.exists().where(_twin.c.work == _did.c.work, _twin.c.state == TaskState.RUNNING),
        ),
        TaskState.WAITING,
    ),
    else_=_did.c.state,
)


def _sum(rows: sa.Column[int]) -> sa.Label[int]:
    return sa.cast(sa.func.coalesce(sa.func.sum(rows), 0), sa.BigInteger).label(rows.name)


def _part_count(state: TaskState) -> sa.ColumnElement[int]:
    return sa.func.count().filter(task_parts.c.state == state)


_progress = (
    sa.select(
        _sum(task_parts.c.done),
        _sum(task_parts.c.changed),
        sa.func.count().label("parts"),
        _part_count(TaskState.SUCCEEDED).label("succeeded"),
        _part_count(TaskState.FAILED).label("failed"),
        sa.func.min(task_parts.c.error).filter(task_parts.c.state == TaskState.FAILED).label("error"),
        sa.func.max(task_parts.c.updated_at).label("updated_at"),
    )
    .where(task_parts.c.task_id == _did.c.task_id)
    .lateral("progress")
)

_pace = (
    sa.select(_sum(task_batches.c.done))
    .where(
        task_batches.c.task_id == _did.c.task_id,
        task_batches.c.noted_at > sa.func.now() - timedelta(seconds=RATE_WINDOW_S),
    )
    .lateral("pace")
)

_shown: sa.Select[Any] = (
    sa.select(
        _asked.c.task_id,
        _asked.c.joined,
        _asked.c.cause,
        _asked.c.created_at,
        _state.label("state"),
        _did.c.total,
        _did.c.error,
        _did.c.started_at,
        _did.c.ended_at,
        sa.func.greatest(_did.c.updated_at, _progress.c.updated_at).label("updated_at"),
        *(_progress.c[name] for name in ("done", "changed", "parts", "succeeded", "failed")),
        _progress.c.error.label("part_error"),
        _pace.c.done.label("lately"),
        sa.func.now().label("now"),
    )
    .select_from(_asked)
    .join(_did, _did.c.task_id == sa.func.coalesce(_asked.c.joined, _asked.c.task_id))
    .join(_progress, sa.true())
    .join(_pace, sa.true())
)


def one(connection: sa.Connection, task_id: str) -> Task | None:
    row = connection.execute(_shown.where(_asked.c.task_id == task_id)).one_or_none()
    return None if row is None else _task(row)


def page(connection: sa.Connection, state: TaskState | None, before: str | None, limit: int) -> list[Task]:
    """The newest first."""
    select = _shown.order_by(_asked.c.created_at.desc(), _asked.c.task_id.desc()).limit(limit)
    if state is not None:
        select = select.where(_state == state)
    if before is not None:
        place = sa.select(tasks.c.created_at, tasks.c.task_id).where(tasks.c.task_id == before).scalar_subquery()
        select = select.where(sa.tuple_(_asked.c.created_at, _asked.c.task_id) < place)
    return [_task(row) for row in connection.execute(select)]


def _task(row: sa.Row[Any]) -> Task:
    rate = _rate(row)
    left_s = None
    if row.state == TaskState.RUNNING and row.total is not None and rate:
        left_s = max(0.0, round((row.total - row.done) / rate, 1))
    return Task(
        task_id=row.task_id,
        state=TaskState(row.state),
        joined=row.joined,
        event_id=row.cause.removeprefix(EVENT_CAUSE) if row.cause.startswith(EVENT_CAUSE) else None,
        done=row.done,
        total=row.total,
        changed=row.changed,
        rate=rate,
        eta_seconds=left_s,
        expected_end=None if left_s is None else row.now + timedelta(seconds=left_s),
        parts=row.parts,
        parts_succeeded=row.succeeded,
        parts_failed=row.failed,
        error=row.error or row.part_error,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        updated_at=row.updated_at,
    )


def _rate(row: sa.Row[Any]) -> float | None:
    """Sheets per second: of late, where it runs; on the whole, where it has ended."""
    if row.started_at is None or row.state not in (TaskState.RUNNING, TaskState.SUCCEEDED, TaskState.FAILED):
        return None
    seconds: float
    done: int
    if row.state == TaskState.RUNNING:
        seconds, done = min((row.now - row.started_at).total_seconds(), RATE_WINDOW_S), row.lately
    else:
        seconds, done = (row.ended_at - row.started_at).total_seconds(), row.done
    return round(done / max(seconds, _LEAST_S), 1)
