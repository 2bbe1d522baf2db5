"""Repricing many rows: parts of the key range, each worked on in turns and in batches, resumable after any death.

A task begins once (`begin`), and is then divided into parts. A part is one worker's for a turn of
about a second, under the part's lock; then it queues its next turn, so that a worker can do other things in between.
Each batch is a transaction of its own.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from app.domain.columns import RowKey, Table
from app.domain.sheet import EncodedSheet
from app.domain.task import Assignment, Batch, TaskState, slices, task_scope
from app.errors import PricingError, Unavailable
from app.services.ports import Clock, Held, Locks, SheetCache, Store, TaskQueue, Transaction, Turn
from app.services.repricing import reprice, reprice_between

TURN_MS = 1_000
"""How long one turn works before it queues the next, in ms."""

ABANDONED_S = 5.0
"""Work that has no lock and no hint, and has not moved for that long, is hinted again, in seconds."""

ABANDONED_IMPORT_S = 120.0

MOST_HINTED = 1_000
"""At a time."""

SAMPLE = 8
"""Keys that are looked at for each part that a task may be divided into: the parts' sizes differ by less."""


LOOK_S, LONGEST_HELD_S = 0.01, 2.0
"""How often a beginning task looks whether rows are still held, and for how long, in seconds."""

HELD_SHARE = 4
"""A batch in which most rows change has one in so many of them: others who need one wait for a quarter of the time, and
it is as quick (ADR 15)."""

MOST_TEXT = 500

Hint = tuple[str, int | None]
"""A task and one of its parts, or None for its beginning."""


@dataclass(frozen=True, slots=True)
class Recalculation:
    """Works on tasks. `batch_rows` is how many rows one transaction looks at, `held_rows` (no more) how many one holds
    from its beginning to its end, since most of them change: an event that is about one of these waits meanwhile.
    `part_rows` is how many a part has at least, about, where there are that many; `max_attempts` how many turns in a
    row may fail or die before a part is given up. `on_batch` is told of every batch how many rows it looked at, and how
    many changed."""

    store: Store
    cache: SheetCache
    locks: Locks
    queue: TaskQueue
    clock: Clock
    batch_rows: int
    held_rows: int
    part_rows: int
    max_attempts: int
    turn_ms: int = TURN_MS
    on_batch: Callable[[int, int], None] = lambda rows, changed: None
    pause: Callable[[float], None] = time.sleep

    def work_on(self, task_id: str, part: int | None) -> None:
        """Work on a part for a turn, and queue its next one, or what waits for the task's end; without a part, begin
        the task, unless the same work is running, and queue its parts. What has ended, or is not there, is left alone.

        Raises `LockLost` and `Unavailable`: what is not noted is then repeated by the next turn. So is what fails,
        until it has failed too often.
        """
        after: list[Hint] = []

        def work(held: Held) -> bool:
            after[:] = self._begin(task_id) if part is None else _PartTurn(self, task_id, part, held).run()
            return False

        if self.locks.in_rounds(task_scope(task_id, part), work, turn_s=0) is Turn.UNFINISHED:
            after.append((task_id, part))  # somebody has asked meanwhile
        for hint in after:
            self.queue.recalculate(*hint)

    def _begin(self, task_id: str) -> list[Hint]:
        with self.store.transaction() as tx:
            scopes = tx.tasks.begin(task_id)
        if scopes is not None:
            self._outwait_holders(task_id)
        with self.store.transaction() as tx:
            if scopes is not None:
                sample, total = tx.rows.every_nth(max(1, self.part_rows // SAMPLE), scopes)
                tx.tasks.divide(task_id, total, slices(sample, total, self.part_rows))
            return [(task_id, part) for part in tx.parts.open(task_id)]

    def _outwait_holders(self, task_id: str) -> None:
        """Wait until whoever holds rows now has committed. It may have read the rules before the change that the task
        is for, and what it writes then would be seen by nobody: a batch looks without locks, and judges a row by what
        is committed. Whoever comes later reads the rules as they are now."""
        waited_s, holders = 0.0, self._holders()
        while holders:
            if waited_s > LONGEST_HELD_S:
                raise Unavailable(f"task {task_id} waits for rows that are held for more than {LONGEST_HELD_S:g} s")
            self.pause(LOOK_S)
            waited_s += LOOK_S
            holders &= self._holders()

    def _holders(self) -> set[str]:
        with self.store.transaction() as tx:
            return tx.rows.holders()


def hint_abandoned(store: Store, locks: Locks, queue: TaskQueue) -> None:
    """Hint what nobody works on and no hint is queued for: a process died, or a hint was lost. Raises
    `Unavailable`."""
    with store.transaction() as tx:
        left: list[Hint] = [*tx.parts.abandoned(ABANDONED_S, ABANDONED_IMPORT_S, MOST_HINTED)]
        left += [(task_id, None) for task_id in tx.tasks.abandoned(ABANDONED_S, ABANDONED_IMPORT_S, MOST_HINTED)]
    scopes = {task_scope(*hint): hint for hint in left}
    for scope in locks.idle(list(scopes)):
        queue.recalculate(*scopes[scope])


class _PartTurn:
    """One turn at one part.

    How far sheets are stored is noted with them; that a batch is done, in the transaction of the next one, when it is
    in the cache too. Where turns end in between, those that follow look at these rows again, and write all of them to
    the cache: what was stored, but perhaps not cached, is then not a change any more.
    """

    def __init__(self, service: Recalculation, task_id: str, part: int, held: Held) -> None:
        self._service, self._store = service, service.store
        self._task_id, self._part, self._held, self._token = task_id, part, held, held.token
        self._attempts = 0

    def run(self) -> list[Hint]:
        """What is to be hinted next. Raises what the work raises, once it is noted."""
        with self._store.transaction() as tx:
            turn = tx.parts.begin_turn(self._task_id, self._part, self._token)
            if turn is None:
                return []
            self._attempts = turn.attempts
            if self._attempts > self._service.max_attempts:
                return self._end(tx, TaskState.FAILED, turn.error or "every process that worked on it died")
        try:
            return self._work(turn)
        except (PricingError, ConnectionError, TimeoutError, SystemExit):
            with suppress(PricingError), self._store.transaction() as tx:
                tx.parts.excuse(self._task_id, self._part, self._token)
            raise
        except Exception as error:
            for hint in self._failed(error):
                self._service.queue.recalculate(*hint)
            raise

    def _work(self, turn: Assignment) -> list[Hint]:
        started = self._service.clock()
        cached: Batch | None = None
        while True:
            self._held.check()
            with self._store.transaction() as tx:
                if not tx.parts.hold(self._task_id, self._part, self._token):
                    return []
                if cached is not None:
                    tx.parts.advance(self._task_id, self._part, cached)
                    if cached.ended:
                        return self._end(tx, TaskState.SUCCEEDED)
                    if self._held.stopping() or self._service.clock() - started >= self._service.turn_ms:
                        tx.parts.rest(self._task_id, self._part)
                        return [(self._task_id, self._part)]
                keys, new, last = self._reprice(tx, turn, cached)
                if not len(keys):
                    return self._end(tx, TaskState.SUCCEEDED)
                end: RowKey = keys[-1].item()
                if end > turn.stored:
                    tx.parts.note_stored(self._task_id, self._part, end)
                seen_before = (cached.last if cached else turn.after) < turn.stored
                to_cache = tx.prices.current(keys) if seen_before else new
            self._attempts = 1 if cached else self._attempts
            self._service.cache.put(to_cache)
            cached = Batch(len(keys), len(new), end, ended=last)
            self._service.on_batch(cached.done, cached.changed)

    def _reprice(
        self, tx: Transaction, turn: Assignment, before: Batch | None
    ) -> tuple[Table, list[EncodedSheet], bool]:
        """The keys of the next batch, its new sheets, and whether it is the last; `before` is this turn's last one."""
        most_change = turn.most_change if before is None else before.changed * 2 > before.done
        after = turn.after if before is None else before.last
        all_held = most_change or turn.signal is not None
        limit = self._service.held_rows if all_held else self._service.batch_rows
        if turn.signal is None:
            keys, new = reprice_between(tx, after, turn.until, limit, turn.scopes, turn.cause, most_change=most_change)
        else:
            keys = tx.rows.keys(after, turn.until, limit, turn.scopes)
            if len(keys):
                tx.prices.lock(keys)
                tx.rows.set_signal(turn.signal, keys)
            new = reprice(tx, keys, turn.cause)
        return keys, new, len(keys) < limit

    def _failed(self, error: Exception) -> list[Hint]:
        """Note an error; the part is given up with its last attempt."""
        text = str(getattr(error, "orig", None) or error).partition("\n")[0][:MOST_TEXT] or type(error).__name__
        with self._store.transaction() as tx:
            if not tx.parts.hold(self._task_id, self._part, self._token):
                return []
            if self._attempts >= self._service.max_attempts:
                return self._end(tx, TaskState.FAILED, text)
            tx.parts.note_error(self._task_id, self._part, text)
        return []

    def _end(self, tx: Transaction, state: TaskState, error: str | None = None) -> list[Hint]:
        """End the part, and with the last one the task; then what has waited for that is next. Parts that end at once
        see each other, because the task is held before they look."""
        tx.parts.end(self._task_id, self._part, state, error)
        held = tx.tasks.hold(self._task_id)
        outcome = tx.parts.outcome(self._task_id)
        if held is None or held[0] != TaskState.RUNNING or outcome is TaskState.RUNNING:
            return []
        tx.tasks.end(self._task_id, outcome)
        waiting = tx.tasks.successor(self._task_id)
        return [] if waiting is None else [(waiting, None)]
