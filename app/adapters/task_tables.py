"""Tasks: wide repricings that were asked for. What does their work is in `part_tables`.

Requests for the same work are brought together, and no update is lost by that. A request is made in the transaction
that changed what it is to reprice (R); a task begins (B), works, and ends (E), each in transactions of its own.

- R finds a queued task and joins it: R holds that task's row until it commits, and B has to change the row. So either
  B waits, and the task reads only after R has committed; or B was first, R waits, sees that the task is not queued
  any more, and makes one of its own.
- R finds none queued: it makes one, however many are running. What is running may have read before R.
- Two R at once: the unique index lets one make the task; the other waits for that commit, and then joins.
- A queued task finds the same work running: it does not begin, and E hints it. Either E has not ended yet, and then
  sees the queued task, which is committed before anybody is hinted to begin it; or E is under way, and B waits for the
  running task's row until E has committed, and then begins.

Only these transactions touch a task's row; batches touch their part's. So nobody waits for longer than they take.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters import task_queries
from app.adapters.schema import task_batches, task_parts, tasks
from app.domain.columns import BEFORE_ALL, RowKey
from app.domain.rows import RowScope, SignalChange
from app.domain.task import IMPORT_CAUSE, Task, TaskState
from app.errors import NotFound

JOINED = "joined"
"""The state of a request that another task does the work of; people are shown that task's state."""

UNFINISHED = (TaskState.QUEUED, TaskState.RUNNING)


class TaskTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def create(
        self,
        task_id: str,
        scopes: Sequence[RowScope],
        *,
        cause: str,
        traceparent: str | None = None,
        signal: SignalChange | None = None,
        shared: bool = True,
    ) -> None:
        """A task for the rows that are in any of the scopes, unless this one exists; where another for the same has
        not begun yet, it is joined. One that sets a signal, or is not `shared`, is always done by itself."""
        noted = _distinct(scopes)
        work = _digest(noted) if shared and signal is None else None
        values = {
            "task_id": task_id,
            "scopes": noted,
            "signal": None if signal is None else signal._asdict(),
            "cause": cause,
            "work": work,
            "traceparent": traceparent,
        }
        created = False
        while not created and not self.exists(task_id):
            same = None if work is None else self._hold_queued(work)
            fate = {"state": TaskState.QUEUED} if same is None else {"state": JOINED, "joined": same}
            new = insert(tasks).values(**values, **fate).on_conflict_do_nothing()
            created = self._connection.execute(new).rowcount > 0

    def exists(self, task_id: str) -> bool:
        return bool(self._connection.scalar(sa.select(sa.exists().where(tasks.c.task_id == task_id))))

    def get(self, task_id: str) -> Task | None:
        return task_queries.one(self._connection, task_id)

    def page(self, state: TaskState | None, before: str | None, limit: int) -> list[Task]:
        """The newest tasks, of one state or all; those that are older than the task `before`. Raises `NotFound`
        where that one is unknown."""
        if before is not None and not self.exists(before):
            raise NotFound(f"there is no task {before!r}")
        return task_queries.page(self._connection, state, before, limit)

    def abandoned(self, idle_s: float, import_idle_s: float, limit: int) -> list[str]:
        """Tasks that could begin, or have but not been divided, and that nobody has touched for that long: others', and
        imports', in seconds."""
        running = tasks.alias()
        blocked = sa.exists().where(running.c.work == tasks.c.work, running.c.state == TaskState.RUNNING)
        can_begin = sa.or_(
            sa.and_(tasks.c.state == TaskState.QUEUED, ~blocked),
            sa.and_(tasks.c.state == TaskState.RUNNING, ~sa.exists().where(task_parts.c.task_id == tasks.c.task_id)),
        )
        select = sa.select(tasks.c.task_id).where(can_begin)
        idle = tasks.c.updated_at < idle_since(tasks.c.cause, idle_s, import_idle_s)
        return list(self._connection.scalars(select.where(idle).order_by(tasks.c.updated_at).limit(limit)))

    def _hold_queued(self, work: str) -> str | None:
        """The task for this work that has not begun; it does not before this transaction ends."""
        select = sa.select(tasks.c.task_id).where(tasks.c.work == work, tasks.c.state == TaskState.QUEUED)
        return self._connection.scalar(select.with_for_update(read=True))

    def begin(self, task_id: str) -> list[RowScope] | None:
        """Let a queued task run, unless the same work is running: from now on nobody joins it. Its scopes, where it
        runs and is not divided into parts yet."""
        task = self._connection.execute(
            sa.select(tasks.c.state, tasks.c.work, tasks.c.scopes, _begun(task_id).label("begun"))
            .where(tasks.c.task_id == task_id, tasks.c.state.in_(UNFINISHED))
            .with_for_update(key_share=True)
        ).one_or_none()
        if task is None or task.begun:
            return None
        if task.state == TaskState.QUEUED:
            if task.work is not None and self._runs(task.work):
                return None
            self._update(task_id, state=TaskState.RUNNING, started_at=sa.func.now())
        return [RowScope(**scope) for scope in task.scopes]

    def divide(self, task_id: str, total: int, ends: Sequence[RowKey]) -> None:
        """Divide a running task of so many rows into parts that end at these keys, unless that is done."""
        held = self.hold(task_id)
        if held is None or held[0] != TaskState.RUNNING or self._connection.scalar(sa.select(_begun(task_id))):
            return
        self._update(task_id, total=total)
        self._connection.execute(task_parts.insert(), _parts(task_id, ends))

    def _runs(self, work: str) -> bool:
        """Whether a task for this work is running; where one is just ending, once it has."""
        select = sa.select(tasks.c.task_id).where(tasks.c.work == work, tasks.c.state == TaskState.RUNNING)
        return self._connection.scalar(select.with_for_update(read=True)) is not None

    def hold(self, task_id: str) -> tuple[str, str | None] | None:
        """The state of a task, and the one that it has joined; held until this transaction ends."""
        row = self._connection.execute(
            sa.select(tasks.c.state, tasks.c.joined).where(tasks.c.task_id == task_id).with_for_update(key_share=True)
        ).one_or_none()
        return None if row is None else (row.state, row.joined)

    def end(self, task_id: str, state: TaskState, error: str | None = None) -> None:
        """Note that a task has ended like this. It is held."""
        done = sa.select(sa.func.sum(task_parts.c.done)).where(task_parts.c.task_id == task_id).scalar_subquery()
        total = {"total": sa.func.coalesce(done, 0)} if state is TaskState.SUCCEEDED else {}
        self._update(task_id, state=state, error=error, ended_at=sa.func.now(), joined=None, **total)
        self._connection.execute(task_batches.delete().where(task_batches.c.task_id == task_id))

    def successor(self, task_id: str) -> str | None:
        """The queued task for the same work as this one, which has ended."""
        this = tasks.alias()
        select = sa.select(tasks.c.task_id).join(this, this.c.work == tasks.c.work)
        return self._connection.scalar(select.where(this.c.task_id == task_id, tasks.c.state == TaskState.QUEUED))

    def pass_on(self, task_id: str) -> None:
        """Whoever has joined this task, which was cancelled, still gets what was asked for: from the queued task for
        the same work, or else the oldest of them becomes that."""
        heirs = sa.select(tasks.c.task_id, tasks.c.work).where(tasks.c.joined == task_id)
        heir = self._connection.execute(heirs.order_by(tasks.c.created_at, tasks.c.task_id).limit(1)).one_or_none()
        if heir is None:
            return
        queued = sa.select(tasks.c.task_id).where(tasks.c.work == heir.work, tasks.c.state == TaskState.QUEUED)
        while (chosen := self._connection.scalar(queued)) is None:
            with suppress(sa.exc.IntegrityError), self._connection.begin_nested():  # others may ask for it just now
                self._update(heir.task_id, state=TaskState.QUEUED, joined=None, updated_at=_LONG_AGO)
        self._connection.execute(tasks.update().where(tasks.c.joined == task_id).values(joined=chosen))

    def resume(self, task_id: str) -> None:
        """Let a task that failed or was cancelled go on with what it has not done. It is held. Nobody may join it any
        more, since part of it was done before."""
        parts = task_parts.c.task_id == task_id
        again = task_parts.update().where(parts, task_parts.c.state == TaskState.FAILED)
        self._connection.execute(again.values(state=TaskState.QUEUED, attempts=0, error=None, updated_at=_LONG_AGO))
        state = TaskState.RUNNING if self._connection.scalar(sa.select(_begun(task_id))) else TaskState.QUEUED
        self._update(task_id, state=state, work=None, error=None, ended_at=None, updated_at=_LONG_AGO)

    def touch(self, task_id: str) -> None:
        """Show that a task is not abandoned, though it has not begun."""
        self._update(task_id)

    def unfinished(self, prefix: str) -> list[str]:
        """Unfinished tasks whose ids begin with this, the oldest first."""
        select = sa.select(tasks.c.task_id).where(tasks.c.state.in_(UNFINISHED))
        own = select.where(tasks.c.task_id.startswith(prefix, autoescape=True))
        return list(self._connection.scalars(own.order_by(tasks.c.created_at, tasks.c.task_id)))

    def forget(self, older_than_s: float, limit: int) -> int:
        """Delete at most `limit` tasks that ended longer ago than that, with those that had joined them; how many."""
        old = tasks.c.ended_at < sa.func.now() - timedelta(seconds=older_than_s)
        chosen = sa.select(tasks.c.task_id).where(old).order_by(tasks.c.ended_at).limit(limit)
        chosen = chosen.with_for_update(skip_locked=True)
        return self._connection.execute(tasks.delete().where(tasks.c.task_id.in_(chosen))).rowcount

    def _update(self, task_id: str, **values: object) -> None:
        change = tasks.update().where(tasks.c.task_id == task_id)
        self._connection.execute(change.values({"updated_at": sa.func.now()} | values))


def idle_since(cause: sa.ColumnElement[str], idle_s: float, import_idle_s: float) -> sa.ColumnElement[datetime]:
    """Who has not touched anything since then is taken for dead. An import has no locks or hints that would show
    that it lives, and touches its task less often."""
    seconds = sa.case((cause.startswith(IMPORT_CAUSE), import_idle_s), else_=idle_s)
    return sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _begun(task_id: str) -> sa.Exists:
    """Whether a task is divided into parts."""
    return sa.exists().where(task_parts.c.task_id == task_id)


_LONG_AGO = sa.func.to_timestamp(0)
"""Nobody works on it, so it need not be waited for."""


def _distinct(scopes: Sequence[RowScope]) -> list[dict[str, object]]:
    """As JSON, in an order of their own; a scope of all rows stands for any others."""
    chosen = {RowScope()} if RowScope() in scopes else set(scopes)
    return sorted((scope._asdict() for scope in chosen), key=json.dumps)


def _digest(scopes: list[dict[str, object]]) -> str:
    return hashlib.sha256(json.dumps(scopes).encode()).hexdigest()


def _parts(task_id: str, ends: Sequence[RowKey]) -> list[dict[str, object]]:
    return [
        {
            "task_id": task_id,
            "part": part,
            "state": TaskState.QUEUED,
            "after_product": after[0],
            "after_location": after[1],
            "until_product": until[0],
            "until_location": until[1],
        }
        for part, (after, until) in enumerate(zip([BEFORE_ALL, *ends], ends, strict=False))
    ]
