"""Repricing many rows: in batches of key order, each its own transaction, resumable after any death."""

from collections.abc import Callable
from typing import NamedTuple

from app.services.ports import Clock, Held, Locks, SheetCache, Store, Turn
from app.services.repricing import out_of_date, reprice, row_keys

IMPORT = "import:"
"""What the ids of tasks that imports start begin with: import:<name>:<position>."""

TURN_S = 60.0
"""How long one turn works before it queues the next: well below the task's time limit."""


class _Batch(NamedTuple):
    """A batch that is stored and cached, but not yet noted in its task."""

    done: int
    changed: int
    last: tuple[int, int]


def recalculate(
    task_id: str,
    batch_size: int,
    *,
    store: Store,
    cache: SheetCache,
    locks: Locks,
    clock: Clock,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Turn:
    """Work on a task for a turn. `on_batch` is told of every batch how many rows it looked at.

    A batch is noted as done in the transaction of the next one, when it is in the cache too. So a run that
    takes over from a dead one repeats the last batch, and writes all of it to the cache: what the dead one
    stored, but perhaps did not cache, is then not a change any more.
    """
    finished: _Batch | None = None

    def batch(held: Held) -> bool:
        nonlocal finished
        with store.transaction() as tx:
            tx.events.check_fence(held.scope, held.token)
            task = tx.tasks.hold(task_id)
            if task is None:
                return False
            _, scope, last = task
            if finished is not None:
                tx.tasks.advance(task_id, *finished)
                last = finished.last
            stored = tx.prices.inputs_after(last, batch_size, scope)
            if not len(stored.inputs):
                tx.tasks.finish(task_id)
                return False
            keys = row_keys(stored.inputs)
            new = reprice(tx, out_of_date(tx, stored, clock()), clock, _cause(task_id))
            repeat = tx.prices.current(keys) if finished is None else new
        cache.put(repeat)
        finished = _Batch(len(keys), len(new), keys[-1].item())
        on_batch(finished.done)
        return True

    return locks.in_rounds(f"task:{task_id}", batch, TURN_S)


def _cause(task_id: str) -> str:
    return task_id.rpartition(":")[0] if task_id.startswith(IMPORT) else f"event:{task_id}"
