"""The schema's revisions: they make what the code describes, and keep what was there before."""

from collections.abc import Iterator

import alembic.autogenerate
import alembic.command
import alembic.migration
import psycopg
import pytest
import redis

from app.adapters.database import make_engine, migrate, migration_config
from app.adapters.schema import metadata
from app.adapters.store import Store
from app.domain.task import TaskState
from tests.support.recalculating import Jobs
from tests.support.stores import Stores

CATALOG = """
    INSERT INTO locations (location, name, currency, currency_number, time_zone)
    VALUES ('NY', 'New York', 'USD', 840, 'America/New_York');
    INSERT INTO products (product_id, name) SELECT 'P-' || n, 'P' FROM generate_series(1, 6) n;
    INSERT INTO list_prices SELECT product_key, 1, 1000, 0 FROM products;
"""

TASKS_OF_0001 = """
    INSERT INTO tasks (task_id, scope, state, done, total, changed, last_product_key, last_location_key)
    VALUES ('queued', '{"product_key": 2}', 'queued', 0, 1, 0, 0, 0),
           ('running', '{}', 'running', 4, 6, 3, 4, 1),
           ('succeeded', '{}', 'succeeded', 6, 6, 5, 6, 1),
           ('import:shop:7', '{}', 'running', 2, 6, 2, 2, 1),
           ('importing:shop:8', '{}', 'running', 0, 0, 0, 0, 0)
"""


@pytest.fixture
def old_url(stores: Stores) -> Iterator[str]:
    """A database of the first revision, with a catalogue and tasks in it."""
    stores.run("CREATE DATABASE old")
    url = stores.url_of("old")
    try:
        alembic.command.upgrade(migration_config(url), "0001")
        with psycopg.connect(url) as connection:
            connection.execute(CATALOG.encode())
            connection.execute(TASKS_OF_0001.encode())
        yield url
    finally:
        stores.run("DROP DATABASE old WITH (FORCE)")


def test_the_revisions_make_what_the_code_describes(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection, opts={"compare_type": True})
        differences = alembic.autogenerate.compare_metadata(context, metadata)
    engine.dispose()
    assert differences == []


def test_tasks_from_before_they_had_parts_go_on_where_they_were(old_url: str, valkey: redis.Redis) -> None:
    migrate(old_url)
    store = Store(make_engine(old_url))
    jobs = Jobs(store, valkey, old_url)
    assert [jobs.task(name).state for name in ("queued", "running")] == [TaskState.QUEUED, TaskState.RUNNING]
    running, done = jobs.task("running"), jobs.task("succeeded")
    assert (running.done, running.total, running.changed, running.parts) == (4, 6, 3, 1)
    assert (done.state, done.done, done.changed, done.event_id) == (TaskState.SUCCEEDED, 6, 5, "succeeded")
    assert done.ended_at is not None
    for name in ("queued", "running", "import:shop:7", "importing:shop:8"):
        jobs.run(name)
        assert jobs.task(name).state is TaskState.SUCCEEDED
    assert [jobs.task(name).done for name in ("queued", "running", "import:shop:7", "importing:shop:8")] == [1, 6, 6, 6]
    causes = jobs.sql("SELECT product_key, cause FROM price_history ORDER BY product_key")
    assert causes == [
        (1, "event:importing:shop:8"), (2, "event:queued"), (3, "import:shop"), (4, "import:shop"),
        (5, "event:running"), (6, "event:running"),
    ]  # fmt: skip
    store.close()


def test_the_way_back_keeps_tasks_but_not_those_that_set_signals(old_url: str, valkey: redis.Redis) -> None:
    migrate(old_url)
    with psycopg.connect(old_url) as connection:
        connection.execute("UPDATE tasks SET signal = '{}' WHERE task_id = 'queued'")
    with pytest.raises(Exception, match="let the tasks that set signals end first"):
        alembic.command.downgrade(migration_config(old_url), "0001")
    with psycopg.connect(old_url) as connection:
        connection.execute("UPDATE tasks SET signal = NULL")
    alembic.command.downgrade(migration_config(old_url), "0001")
    with psycopg.connect(old_url) as connection:
        rows = connection.execute("SELECT task_id, state, done FROM tasks ORDER BY task_id").fetchall()
    assert rows == [
        ("import:shop:7", "queued", 0), ("importing:shop:8", "queued", 0), ("queued", "queued", 0),
        ("running", "queued", 0), ("succeeded", "succeeded", 6),
    ]  # fmt: skip
    migrate(old_url)


def test_what_was_stored_and_not_cached_is_cached_after_either_way(old_url: str, valkey: redis.Redis) -> None:
    """How far a turn got that failed was not noted before 0006."""
    migrate(old_url)
    store = Store(make_engine(old_url))
    jobs = Jobs(store, valkey, old_url)
    jobs.create("t")
    jobs.recalculate("t")
    jobs.act()

    def fail() -> None:
        raise RuntimeError("no cache")

    jobs.cache.before = fail
    with pytest.raises(RuntimeError):
        jobs.act()
    jobs.cache.before = lambda: None
    assert jobs.versions() == [1, 1], "a batch of two is stored"
    store.close()
    alembic.command.downgrade(migration_config(old_url), "0005")
    assert jobs.sql("SELECT part, orderly FROM task_parts WHERE task_id = 't' ORDER BY part") == [(0, False), (1, True)]
    migrate(old_url)
    jobs.recalculate("t", 0)
    jobs.act_on_all()
    assert jobs.task("t").state is TaskState.SUCCEEDED
    assert sorted(name for name, _ in jobs.cache.names()) == [f"P-{n}" for n in range(1, 7)]
    store.close()
