"""Recalculations: wide repricings as durable tasks that go batch by batch."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters.schema import tasks
from app.domain.rows import RowScope
from app.domain.task import Task, TaskState


class TaskTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def create(self, task_id: str, scope: RowScope, total: int, traceparent: str | None) -> None:
        """A queued task, unless it exists."""
        self._connection.execute(
            insert(tasks)
            .values(
                task_id=task_id,
                scope=scope._asdict(),
                state=TaskState.QUEUED,
                total=total,
                traceparent=traceparent,
            )
            .on_conflict_do_nothing()
        )

    def get(self, task_id: str) -> Task | None:
        row = self._connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id)).one_or_none()
        return None if row is None else _task(row)

    def hold(self, task_id: str) -> tuple[Task, RowScope, tuple[int, int]] | None:
        """An unfinished task, its scope and the last row done, locked; None if finished or held elsewhere."""
        row = self._connection.execute(
            sa.select(tasks)
            .where(tasks.c.task_id == task_id, tasks.c.state.in_([TaskState.QUEUED, TaskState.RUNNING]))
            .with_for_update(skip_locked=True)
        ).one_or_none()
        if row is None:
            return None
        return _task(row), RowScope(**row.scope), (row.last_product_key, row.last_location_key)

    def advance(self, task_id: str, done: int, changed: int, last: tuple[int, int]) -> None:
        """Note that `done` more rows, up to and including `last`, are stored and cached."""
        self._update(
            task_id,
            state=TaskState.RUNNING,
            done=tasks.c.done + done,
            changed=tasks.c.changed + changed,
            last_product_key=last[0],
            last_location_key=last[1],
        )

    def finish(self, task_id: str, error: str | None = None) -> None:
        if error is None:
            self._update(task_id, state=TaskState.SUCCEEDED, total=tasks.c.done)
        else:
            self._update(task_id, state=TaskState.FAILED, error=error)

    def abandoned(self, idle_s: float, limit: int) -> list[str]:
        """Unfinished tasks that nobody has moved for that long, in seconds."""
        since = sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, idle_s)
        unfinished = tasks.c.state.in_([TaskState.QUEUED, TaskState.RUNNING])
        select = sa.select(tasks.c.task_id).where(unfinished, tasks.c.updated_at < since)
        return list(self._connection.execute(select.order_by(tasks.c.updated_at).limit(limit)).scalars())

    def _update(self, task_id: str, **values: Any) -> None:
        change = tasks.update().where(tasks.c.task_id == task_id)
        self._connection.execute(change.values(updated_at=sa.func.now(), **values))


def _task(row: sa.Row[Any]) -> Task:
    return Task(
        task_id=row.task_id,
        state=TaskState(row.state),
        done=row.done,
        total=row.total,
        changed=row.changed,
        error=row.error,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
