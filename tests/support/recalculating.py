"""A catalogue of many rows, and recalculations of it whose hints the test itself acts on."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import psycopg
import redis

from app.adapters.locks import Locks
from app.adapters.store import Store
from app.bootstrap import now_ms
from app.domain.money import SCALE
from app.domain.rows import RowScope, SignalChange
from app.domain.sheet import EncodedSheet
from app.domain.task import Task
from app.services.recalculation import Hint, Recalculation
from tests.support.sheets import spelled_out

EVERYTHING = [RowScope()]


class Written:
    """A cache that keeps what it was given, and calls `before` first."""

    def __init__(self) -> None:
        self.sheets: list[EncodedSheet] = []
        self.before: Callable[[], None] = lambda: None

    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        self.before()
        self.sheets += sheets

    def names(self) -> list[tuple[str, str]]:
        return [(sheet.product_id, sheet.location) for sheet in self.sheets]


@dataclass
class Jobs:
    """`service` works in this process; `hints` are what it has queued. Parts have 4 rows, batches 2, and a turn
    lasts for as long as there is work, however busy the machine."""

    store: Store
    valkey: redis.Redis
    database_url: str
    cache: Written = field(default_factory=Written)
    hints: deque[Hint] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.service = Recalculation(
            store=self.store, cache=self.cache, locks=Locks(self.valkey, 30), queue=self, clock=now_ms,
            batch_rows=2, held_rows=2, part_rows=4, max_attempts=3, turn_ms=10**9,
        )  # fmt: skip

    def recalculate(self, task_id: str, part: int | None = None) -> None:
        """As a queue has it."""
        self.hints.append((task_id, part))

    def sql(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database_url) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def add_products(self, first: int, last: int) -> None:
        """P-<first> … P-<last>, in no category, each at 1000 (minor units) everywhere."""
        numbers = "INSERT INTO products (product_id, name) SELECT 'P-' || n, 'P' FROM generate_series(%s::int, %s) n"
        self.sql(numbers, first, last)
        self.sql(
            "INSERT INTO list_prices SELECT product_key, location_key, 1000, 0 FROM products, locations"
            " ON CONFLICT DO NOTHING"
        )

    def another(self, **changes: object) -> Recalculation:
        """A second worker, with a cache or a batch size of its own for example."""
        return replace(self.service, **changes)  # type: ignore[arg-type]

    def create(
        self, task_id: str = "t", scopes: list[RowScope] | None = None, signal: SignalChange | None = None
    ) -> Task:
        with self.store.transaction() as tx:
            tx.tasks.create(task_id, scopes or EVERYTHING, cause=f"event:{task_id}", signal=signal)
        return self.task(task_id)

    def task(self, task_id: str = "t") -> Task:
        with self.store.transaction() as tx:
            task = tx.tasks.get(task_id)
        assert task is not None
        return task

    def act(self) -> None:
        """Act on one hint, as a worker does."""
        task_id, part = self.hints.popleft()
        self.service.work_on(task_id, part)

    def act_on_all(self) -> None:
        while self.hints:
            self.act()

    def run(self, task_id: str = "t") -> Task:
        """From its beginning to its end, and whatever waits for that."""
        self.recalculate(task_id)
        self.act_on_all()
        return self.task(task_id)

    def prices(self) -> list[int]:
        """Everyone's current price of each row, in key order; minor units."""
        current = (
            "SELECT everyone_price FROM price_history JOIN price_sheets USING (product_key, location_key, version)"
        )
        return [int(str(price)) for (price,) in self.sql(f"{current} ORDER BY product_key, location_key")]

    def versions(self) -> list[int]:
        """How many versions each row has, in key order."""
        counts = "SELECT count(*) FROM price_history GROUP BY product_key, location_key"
        return [int(str(count)) for (count,) in self.sql(f"{counts} ORDER BY product_key, location_key")]

    def reprice_by(self, amount: int, condition: str = "true") -> None:
        """Change list prices behind everybody's back, as what a recalculation then finds."""
        self.sql(f"UPDATE list_prices SET amount = %s WHERE {condition}", amount)


def price(sheet: EncodedSheet) -> int:
    return spelled_out(sheet.payload).everyone.tiers[0].final // SCALE
