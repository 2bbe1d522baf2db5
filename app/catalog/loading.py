"""From a catalogue's rows to stored, cached prices.

First the rows, kind by kind, in batches of one transaction each; then every price sheet that is not what the
formula gives any more, as a recalculation, which outlives this process: whatever a killed import left undone
is finished by the service, or by the next import.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa

from app.adapters.database import make_engine, unavailable_if_down
from app.adapters.price_cache import PriceCache
from app.adapters.redis_clients import make_redis
from app.adapters.store import Store
from app.bootstrap import lifetimes, now_ms
from app.catalog.files import Part
from app.catalog.merging import BATCH, Listener, PartResult, Progress, merge_part
from app.domain.positions import position_at
from app.domain.rows import RowScope
from app.domain.sheet import EncodedSheet
from app.domain.task import IMPORT_CAUSE, TaskState
from app.errors import InvalidInput, LockLost
from app.services.ports import Clock, Held, SheetCache, Turn
from app.services.recalculation import HELD_SHARE, Recalculation
from app.services.repricing import current_versions
from app.settings import Settings

_BEGUN = "importing:"
"""A task of this prefix is unfinished while an import's rows go in; then one that prices them takes its place."""

_ALIVE_MS = 20_000

_ONE_AT_A_TIME = sa.text("SELECT pg_advisory_lock(hashtext('pricing import'))")
"""PostgreSQL lets go of it when the importing process ends, however it ends."""


class ImportResult(NamedTuple):
    """`sheets` is how many prices got a new version."""

    parts: list[PartResult]
    sheets: int


@dataclass(frozen=True, slots=True)
class Importer:
    engine: sa.Engine
    cache: SheetCache
    clock: Clock
    listener: Listener = field(default_factory=Listener)

    def run(self, name: str, parts: Sequence[Part]) -> ImportResult:
        """Import the parts in order, then bring all sheets up to date. Raises `Unavailable`; a repeat is safe.

        The rows are as new as the moment in which this begins, also where they come after later events.
        """
        position = position_at(self.clock())
        store, begun, task_id = Store(self.engine), f"{_BEGUN}{name}:{position}", f"{IMPORT_CAUSE}{name}:{position}"
        listener = replace(self.listener, progress=self._keeping_alive(store, begun))
        with unavailable_if_down(), self.engine.connect() as connection:
            try:
                with connection.begin():
                    connection.execute(_ONE_AT_A_TIME)
                with store.transaction() as tx:
                    tx.tasks.create(begun, [RowScope()], cause=f"{IMPORT_CAUSE}{name}", shared=False)
                results = [merge_part(connection, part, position, listener) for part in parts]
                with store.transaction() as tx:
                    for task in tx.tasks.unfinished(_BEGUN):  # those before us are dead: we hold the lock
                        tx.tasks.end(task, TaskState.SUCCEEDED)
                    tx.tasks.create(task_id, [RowScope()], cause=f"{IMPORT_CAUSE}{name}", shared=False)
                return ImportResult(results, self._reprice(store, task_id))
            finally:
                connection.invalidate()  # closed, not pooled: the lock and the staging table are its own

    def is_filled(self) -> bool:
        """Whether there are products, and no import that was cut short."""
        with Store(self.engine).transaction() as tx:
            unfinished = tx.tasks.unfinished(_BEGUN) or tx.tasks.unfinished(IMPORT_CAUSE)
            return tx.catalog.has_products() and not unfinished

    def _keeping_alive(self, store: Store, task_id: str) -> Progress:
        """The listener's progress, that also shows from time to time that this task is not abandoned."""
        touched = self.clock()

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal touched
            self.listener.progress(stage, done, total)
            if self.clock() - touched > _ALIVE_MS:
                touched = self.clock()
                with store.transaction() as tx:
                    tx.tasks.touch(task_id)

        return progress

    def _reprice(self, store: Store, task_id: str) -> int:
        """Also finishes what earlier imports left: rows that they stored, but perhaps did not bring to the cache."""
        with store.transaction() as tx:
            unfinished = tx.tasks.unfinished(IMPORT_CAUSE)
            total = tx.catalog.count(RowScope())
        done = 0

        def on_batch(rows: int, _: int) -> None:
            nonlocal done
            done += rows
            self.listener.progress("prices", min(done, total), total)

        for task in dict.fromkeys((*unfinished, task_id)):
            done = 0
            self._finish(store, task, on_batch)
        with store.transaction() as tx:
            finished = tx.tasks.get(task_id)
        return finished.changed if finished else 0

    def _finish(self, store: Store, task_id: str, on_batch: Callable[[int, int], None]) -> None:
        """In one part; where a worker has taken a dead import's task over, it is taken back."""
        work = Recalculation(
            store=store, cache=self.cache, locks=_NoLocks(self.clock), queue=_NoQueue(), clock=self.clock,
            batch_rows=BATCH, held_rows=BATCH // HELD_SHARE, part_rows=2**31, max_attempts=2**31, on_batch=on_batch,
        )  # fmt: skip
        work.work_on(task_id, None)
        while parts := self._open_parts(store, task_id):
            for part in parts:
                with suppress(LockLost):
                    work.work_on(task_id, part)

    def _open_parts(self, store: Store, task_id: str) -> list[int]:
        with store.transaction() as tx:
            return tx.parts.open(task_id)


@contextmanager
def open_importer(settings: Settings, listener: Listener) -> Iterator[Importer]:
    """An importer for the stores that the settings name; without a cache, only for the database. Raises
    `InvalidInput` where there is no database or it is not migrated, `Unavailable` where it does not answer."""
    if settings.database_url is None:
        raise InvalidInput("no database is named: set PRICING_DATABASE_URL, or start one with `pricing up`")
    engine = make_engine(settings.database_url.get_secret_value())
    cache: SheetCache = _NoCache()
    if settings.cache_url is not None:
        client = make_redis(settings.cache_url.get_secret_value(), settings.store_timeout_s)
        cache = PriceCache(client, lifetimes(settings), partial(current_versions, Store(engine)))
    try:
        with unavailable_if_down(), engine.connect() as connection:
            if connection.scalar(sa.text("SELECT to_regclass('price_sheets')")) is None:
                raise InvalidInput("the database has no tables yet: run `pricing migrate`")
        yield Importer(engine, cache, now_ms, listener)
    finally:
        engine.dispose()


class _NoCache:
    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _NoLocks:
    """Ours is the database's, for the whole import; a token is as high as a worker's at the same time."""

    clock: Clock

    def idle(self, scopes: Sequence[str]) -> list[str]:
        return []

    def in_rounds(self, scope: str, work: Callable[[Held], bool], turn_s: float) -> Turn:
        work(_Alone(scope, self.clock() * 1000))
        return Turn.DONE


@dataclass(slots=True)
class _Alone:
    scope: str
    token: int

    def check(self) -> None:
        pass

    def stopping(self) -> bool:
        return False


class _NoQueue:
    """The next turn is ours too."""

    def recalculate(self, task_id: str, part: int | None = None) -> None:
        pass
