"""The parts of tasks: slices of the key range, each worked on by one worker at a time.

A part's row is its fence: it keeps the token of whoever began the last turn at it, and every transaction of a turn
holds the row and looks. The token of a lock rises with every holder, so one that was paused, and wakes after another
has begun, finds a newer token, and its transaction changes nothing.
"""

from typing import Any

import sqlalchemy as sa

from app.adapters.schema import task_batches, task_parts, tasks
from app.adapters.task_tables import UNFINISHED, idle_since
from app.domain.columns import RowKey
from app.domain.rows import RowScope, SignalChange
from app.domain.task import Assignment, Batch, TaskState
from app.errors import LockLost


class PartTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def begin_turn(self, task_id: str, part: int, token: int) -> Assignment | None:
        """Begin a turn at a part, which is from now on the token's, and count it as an attempt; None where nothing is
        to be done, or another's transaction is at it. Raises `LockLost` where a newer one has begun."""
        select = sa.select(task_parts, tasks.c.cause, tasks.c.scopes, tasks.c.signal).join(tasks)
        row = self._connection.execute(
            select.where(_is(task_id, part), _open(), tasks.c.state == TaskState.RUNNING).with_for_update(
                of=task_parts, skip_locked=True
            )
        ).one_or_none()
        if row is None:
            return None
        _check(task_id, part, row.token, token)
        attempts = row.attempts + 1
        changed, done = sa.func.sum(task_parts.c.changed), sa.func.sum(task_parts.c.done)
        most_change = sa.select(changed * 2 > done).where(task_parts.c.task_id == task_id)
        self._update(task_id, part, state=TaskState.RUNNING, token=token, attempts=attempts)
        return Assignment(
            cause=row.cause,
            scopes=[RowScope(**scope) for scope in row.scopes],
            signal=None if row.signal is None else SignalChange(**row.signal),
            after=(row.after_product, row.after_location),
            stored=(row.stored_product, row.stored_location),
            until=(row.until_product, row.until_location),
            attempts=attempts,
            error=row.error,
            most_change=self._connection.execute(most_change).scalar_one(),
        )

    def hold(self, task_id: str, part: int, token: int) -> bool:
        """Hold a part until this transaction ends; whether its task still runs. Raises `LockLost` where another has
        begun a turn at it since this one did."""
        row = self._connection.execute(
            sa.select(task_parts.c.token, task_parts.c.state, tasks.c.state.label("task_state"))
            .join(tasks)
            .where(_is(task_id, part))
            .with_for_update(of=task_parts)
        ).one_or_none()
        if row is None:
            return False
        _check(task_id, part, row.token, token)
        return row.task_state == TaskState.RUNNING and row.state in UNFINISHED

    def advance(self, task_id: str, part: int, batch: Batch) -> None:
        """Note a batch as done: it is stored and cached. What fails from here on has been tried once."""
        self._update(
            task_id,
            part,
            done=task_parts.c.done + batch.done,
            changed=task_parts.c.changed + batch.changed,
            after_product=batch.last[0],
            after_location=batch.last[1],
            attempts=1,
            error=None,
        )
        self._connection.execute(task_batches.insert().values(task_id=task_id, done=batch.done))

    def note_stored(self, task_id: str, part: int, last: RowKey) -> None:
        """Note up to which row sheets are stored when this transaction has ended, though not cached yet."""
        self._update(task_id, part, stored_product=last[0], stored_location=last[1])

    def rest(self, task_id: str, part: int) -> None:
        """End a turn of which everything is noted."""
        self._update(task_id, part, attempts=0)

    def excuse(self, task_id: str, part: int, token: int) -> None:
        """The turn of this token ended early for reasons that are not the part's: it was no attempt."""
        change = task_parts.update().where(_is(task_id, part), task_parts.c.token == token, task_parts.c.attempts > 0)
        self._connection.execute(change.values(attempts=task_parts.c.attempts - 1))

    def note_error(self, task_id: str, part: int, error: str) -> None:
        """What the last attempt failed with."""
        self._update(task_id, part, error=error)

    def end(self, task_id: str, part: int, state: TaskState, error: str | None = None) -> None:
        self._update(task_id, part, state=state, error=error)

    def open(self, task_id: str) -> list[int]:
        """The parts of a running task that have not ended."""
        select = sa.select(task_parts.c.part).join(tasks).where(tasks.c.task_id == task_id, _open())
        return list(self._connection.scalars(select.where(tasks.c.state == TaskState.RUNNING).order_by("part")))

    def outcome(self, task_id: str) -> TaskState:
        """How a task stands by its parts: it runs until all have ended, and has failed where one has."""
        states = set(self._connection.scalars(sa.select(task_parts.c.state).where(task_parts.c.task_id == task_id)))
        if states & set(UNFINISHED):
            return TaskState.RUNNING
        return TaskState.FAILED if TaskState.FAILED in states else TaskState.SUCCEEDED

    def abandoned(self, idle_s: float, import_idle_s: float, limit: int) -> list[tuple[str, int]]:
        """Open parts of running tasks that nobody has moved for that long: others', and imports', in seconds."""
        idle = task_parts.c.updated_at < idle_since(tasks.c.cause, idle_s, import_idle_s)
        select = sa.select(task_parts.c.task_id, task_parts.c.part).join(tasks).where(_open(), idle)
        oldest = select.where(tasks.c.state == TaskState.RUNNING).order_by(task_parts.c.updated_at).limit(limit)
        return [(row.task_id, row.part) for row in self._connection.execute(oldest)]

    def _update(self, task_id: str, part: int, **values: Any) -> None:
        change = task_parts.update().where(_is(task_id, part))
        self._connection.execute(change.values(updated_at=sa.func.now(), **values))


def _is(task_id: str, part: int) -> sa.ColumnElement[bool]:
    return sa.and_(task_parts.c.task_id == task_id, task_parts.c.part == part)


def _open() -> sa.ColumnElement[bool]:
    return task_parts.c.state.in_(UNFINISHED)


def _check(task_id: str, part: int, newest: int, token: int) -> None:
    if token < newest:
        raise LockLost(f"part {part} of task {task_id} was taken over by a newer holder")
