"""PostgreSQL as one port: a transaction, and in it everything that is written or read together."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa
from opentelemetry.trace import SpanKind

from app.adapters.catalog_tables import CatalogTables
from app.adapters.database import NOW_MS, transaction, unavailable_if_down
from app.adapters.event_tables import EventTables
from app.adapters.key_tables import KeyTables
from app.adapters.part_tables import PartTables
from app.adapters.price_tables import PriceTables
from app.adapters.record_partitions import RecordPartitions
from app.adapters.record_tables import RecordTables
from app.adapters.row_scans import RowScans
from app.adapters.rule_tables import RuleTables
from app.adapters.sheet_queries import SheetQueries
from app.adapters.supposed_rules import SupposedRules
from app.adapters.task_tables import TaskTables
from app.adapters.usage_queries import UsageQueries
from app.observability import metrics
from app.observability.tracing import step


class Transaction:
    """One database transaction, by subject. Everything here commits together or not at all."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.catalog = CatalogTables(connection)
        self.events = EventTables(connection)
        self.keys = KeyTables(connection)
        self.parts = PartTables(connection)
        self.prices = PriceTables(connection)
        self.records = RecordTables(connection)
        self.record_partitions = RecordPartitions(connection)
        self.rows = RowScans(connection)
        self.rules = RuleTables(connection)
        self.sheets = SheetQueries(connection)
        self.supposed = SupposedRules(connection, self.rules)
        self.tasks = TaskTables(connection)
        self.usage = UsageQueries(connection)

    def now_ms(self) -> int:
        """The time, in ms since 1970, by the clock of the database, whichever machine asks."""
        return int(self._connection.execute(sa.text(NOW_MS)).scalar_one())


class Store:
    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._without_transaction = engine.execution_options(isolation_level="AUTOCOMMIT")

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Commits on leaving, rolls back on an error. What is asked waits for its answer only when that is read. Raises
        `Unavailable` where PostgreSQL is away."""
        return self._used("postgresql transaction", self._begun)

    def reading(self) -> AbstractContextManager[Transaction]:
        """To read only. Each statement sees what was committed until it begins, as in `transaction`, but none has to
        wait for a BEGIN, nor anybody for a COMMIT. Raises `Unavailable` where PostgreSQL is away."""
        return self._used("postgresql read", self._without_transaction.connect)

    @contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        with self._without_transaction.connect() as connection, transaction(connection):
            yield connection

    @contextmanager
    def _used(self, name: str, connect: Callable[[], AbstractContextManager[sa.Connection]]) -> Iterator[Transaction]:
        traced = step(name, SpanKind.CLIENT, {"db.system.name": "postgresql"})
        began, outcome = time.perf_counter(), "failed"
        try:
            with traced, unavailable_if_down(), connect() as connection:
                metrics.database_wait.observe(time.perf_counter() - began)
                self._count_connections()
                yield Transaction(connection)
            outcome = "committed"
        finally:
            metrics.database_transaction.labels(outcome).observe(time.perf_counter() - began)
            self._count_connections()

    def ping(self) -> None:
        """Raises `Unavailable`."""
        with unavailable_if_down(), self._engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        self._engine.dispose()

    def _count_connections(self) -> None:
        pool = self._engine.pool
        assert isinstance(pool, sa.QueuePool)
        metrics.database_connections.labels("in_use").set(pool.checkedout())
        metrics.database_connections.labels("idle").set(pool.checkedin())
        metrics.database_connections_limit.set(pool.size())
