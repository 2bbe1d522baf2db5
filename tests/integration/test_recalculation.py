"""Recalculations: workers share them, any death is made good, and who asks for the same never loses an update."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal

import numpy as np
import psycopg
import pytest

from app.adapters.locks import Locks
from app.bootstrap import now_ms
from app.domain.columns import AFTER_ALL, BEFORE_ALL, ROW_KEYS
from app.domain.rows import LIST_PRICE, RowScope, SignalChange
from app.domain.rules import Policy, PolicyKindName
from app.domain.task import TaskState
from app.errors import LockLost, NotFound, TaskEnded, Unavailable
from app.services import tasks
from app.services.recalculation import TURN_MS, hint_abandoned
from app.services.repricing import reprice
from app.services.retention import forget_old
from tests.support.recalculating import Jobs, Written, price
from tests.support.waiting import eventually

ROWS = 20


def somebody_waits(jobs: Jobs) -> bool:
    """Whether a transaction waits for another's lock."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return len(jobs.sql(waiting)) > 0


def test_a_task_is_divided_into_parts_of_equal_size_that_have_every_row_once(jobs: Jobs) -> None:
    jobs.create()
    jobs.service.work_on("t", None)
    parts = jobs.sql(
        "SELECT p.part, count(*) FROM task_parts p JOIN list_prices lp ON"
        " (lp.product_key, lp.location_key) > (p.after_product, p.after_location) AND"
        " (lp.product_key, lp.location_key) <= (p.until_product, p.until_location) GROUP BY 1 ORDER BY 1"
    )
    assert [count for _, count in parts] == [5, 4, 4, 4, 3]
    ends = jobs.sql("SELECT after_product, after_location, until_product, until_location FROM task_parts ORDER BY part")
    assert (ends[0][:2], ends[-1][2:]) == (BEFORE_ALL, AFTER_ALL), "rows that come later have a part, too"
    assert list(jobs.hints) == [("t", part) for part in range(5)]


def test_every_price_is_computed_once_and_the_task_tells_how_far_it_is(jobs: Jobs) -> None:
    queued = jobs.create()
    assert (queued.state, queued.done, queued.total, queued.event_id) == (TaskState.QUEUED, 0, None, "t")
    jobs.recalculate("t")
    jobs.act()
    jobs.act()
    begun = jobs.task()
    assert begun.state is TaskState.RUNNING
    assert (begun.total, begun.parts, begun.parts_succeeded) == (ROWS, 5, 1)
    assert 4 <= begun.done <= 5
    assert begun.rate is not None
    assert begun.eta_seconds is not None
    assert begun.expected_end is not None
    jobs.act_on_all()
    ended = jobs.task()
    assert (ended.state, ended.done, ended.total, ended.changed) == (TaskState.SUCCEEDED, ROWS, ROWS, ROWS)
    assert (ended.parts_succeeded, ended.eta_seconds) == (5, None)
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert jobs.versions() == [1] * ROWS
    assert len(set(jobs.cache.names())) == len(jobs.cache.sheets) == ROWS
    assert jobs.sql("SELECT DISTINCT cause FROM price_history") == [("event:t",)]
    assert jobs.sql("SELECT count(*) FROM task_batches") == [(0,)]


def test_a_task_without_rows_succeeds(jobs: Jobs) -> None:
    jobs.create(scopes=[RowScope(product_key=10**6)])
    assert (jobs.run().state, jobs.task().total) == (TaskState.SUCCEEDED, 0)


def test_only_rows_that_are_in_any_of_the_scopes_are_looked_at(jobs: Jobs) -> None:
    """Coffee anywhere, or P-5 in Tokyo, or what is priced in yen of tea."""
    scopes = [
        RowScope(category_key=1),
        RowScope(product_key=5, location_key=2),
        RowScope(category_key=2, currency="JPY"),
    ]
    jobs.create(scopes=scopes)
    assert (jobs.run().total, jobs.task().done) == (4, 4)
    assert sorted(jobs.cache.names()) == [("P-1", "NY"), ("P-1", "TYO"), ("P-2", "TYO"), ("P-5", "TYO")]


def test_a_scope_of_everything_stands_for_all_others(jobs: Jobs) -> None:
    jobs.create(scopes=[RowScope(category_key=1), RowScope(), RowScope(category_key=1)])
    assert jobs.run().total == ROWS


def test_a_turn_ends_after_its_time_and_the_next_goes_on_without_repeating_anything(jobs: Jobs) -> None:
    now = iter(range(0, 10**9, 600))
    work = jobs.another(clock=lambda: now_ms() + next(now), part_rows=ROWS, turn_ms=TURN_MS)

    def run(task_id: str) -> int:
        jobs.create(task_id)
        work.work_on(task_id, None)
        turns = 0
        while jobs.task(task_id).state is TaskState.RUNNING:
            assert jobs.hints.pop() == (task_id, 0)
            work.work_on(task_id, 0)
            turns += 1
        return turns

    assert run("first") > 2
    assert jobs.versions() == [1] * ROWS
    assert len(set(jobs.cache.names())) == len(jobs.cache.sheets) == ROWS
    jobs.cache.sheets.clear()
    assert run("second") > 2
    assert jobs.task("second").done == ROWS
    assert jobs.cache.sheets == [], "nothing has changed, and no turn distrusts the one before"


def test_a_turn_ends_with_its_batch_where_the_process_shall_end(jobs: Jobs) -> None:
    work = jobs.another(part_rows=ROWS, locks=Locks(jobs.valkey, 30, stopping=lambda: bool(jobs.cache.sheets)))
    jobs.create("t")
    work.work_on("t", None)
    work.work_on("t", jobs.hints.pop()[1])
    assert (jobs.task("t").state, jobs.task("t").done) == (TaskState.RUNNING, 2)
    jobs.service.work_on("t", jobs.hints.pop()[1])
    assert jobs.task("t").state is TaskState.SUCCEEDED
    assert len(set(jobs.cache.names())) == len(jobs.cache.sheets) == ROWS, "what was orderly ended is not repeated"


class Killed(BaseException):
    """Stands for SIGKILL: no one tidies up. The real one is in the tests with workers of their own."""


def dying_after(batches: int) -> Written:
    """A cache whose process dies before it takes the batch after these."""
    cache, left = Written(), iter(range(batches))

    def die() -> None:
        if next(left, None) is None:
            raise Killed

    cache.before = die
    return cache


def test_a_turn_that_died_is_resumed_and_the_next_caches_what_it_did_not(jobs: Jobs) -> None:
    jobs.create()
    dead = dying_after(1)
    work = jobs.another(cache=dead, part_rows=ROWS)
    work.work_on("t", None)
    with pytest.raises(Killed):
        work.work_on("t", 0)
    assert jobs.versions() == [1] * 4, "two batches are stored, of which one is cached"
    work = jobs.another(part_rows=ROWS)
    work.work_on("t", 0)
    assert jobs.task().state is TaskState.SUCCEEDED
    assert (jobs.task().done, jobs.versions()) == (ROWS, [1] * ROWS)
    assert set(dead.names()) | set(jobs.cache.names()) == {(f"P-{n}", at) for n in range(1, 11) for at in ("NY", "TYO")}


def test_rows_of_which_most_change_are_held_a_few_at_a_time(jobs: Jobs) -> None:
    sizes: list[int] = []
    work = jobs.another(
        part_rows=ROWS, batch_rows=8, held_rows=3, on_batch=lambda looked_at, changed: sizes.append(looked_at)
    )
    for task_id, expected in (("new", [8, 3, 3, 3, 3]), ("unchanged", [8, 8, 4])):
        sizes.clear()
        jobs.create(task_id)
        work.work_on(task_id, None)
        work.work_on(task_id, 0)
        assert (sizes, jobs.task(task_id).state) == (expected, TaskState.SUCCEEDED)
    assert jobs.versions() == [1] * ROWS


@pytest.mark.parametrize("batch_rows", [8, 3], ids=["in batches as before", "in smaller ones"])
def test_what_a_large_batch_left_uncached_is_cached_also_where_small_ones_are_due(jobs: Jobs, batch_rows: int) -> None:
    jobs.create("first")
    jobs.run("first")
    sizes = {"part_rows": ROWS, "batch_rows": 8, "held_rows": 2}
    # Eight rows that change, two of the next batch that do not, and so eight at once again.
    unchanged = "SELECT product_key FROM products WHERE product_id IN ('P-5', 'P-10')"
    jobs.reprice_by(1234, f"product_key NOT IN ({unchanged})")
    jobs.create("second")
    dead = dying_after(2)
    work = jobs.another(cache=dead, **sizes)
    work.work_on("second", None)
    with pytest.raises(Killed):
        work.work_on("second", 0)
    assert jobs.versions() == [2] * 8 + [1] * 2 + [2] * 8 + [1] * 2
    jobs.cache.sheets.clear()
    seen: list[int] = []
    later = sizes | {"batch_rows": batch_rows, "on_batch": lambda rows, changed: seen.append(rows), "turn_ms": 0}
    while jobs.task("second").state is TaskState.RUNNING:
        jobs.another(**later).work_on("second", 0)
    assert jobs.task("second").done == ROWS
    assert max(seen) <= batch_rows
    changed = {(f"P-{n}", at) for n in range(1, 10) if n != 5 for at in ("NY", "TYO")}
    assert changed <= set(dead.names()) | set(jobs.cache.names())


def test_a_part_whose_processes_all_die_is_given_up_and_the_others_go_on(jobs: Jobs) -> None:
    jobs.create()
    jobs.service.work_on("t", None)
    deadly = jobs.another(cache=dying_after(0))
    for _ in range(3):
        with pytest.raises(Killed):
            deadly.work_on("t", 2)
    assert jobs.task().state is TaskState.RUNNING
    jobs.act_on_all()
    task = jobs.task()
    assert (task.state, task.parts_succeeded, task.parts_failed) == (TaskState.FAILED, 4, 1)
    assert task.error == "every process that worked on it died"


def test_deaths_count_only_where_nothing_was_done_in_between(jobs: Jobs) -> None:
    jobs.create()
    jobs.another(part_rows=ROWS).work_on("t", None)
    for _ in range(4):
        with pytest.raises(Killed):
            jobs.another(cache=dying_after(2)).work_on("t", 0)
    jobs.service.work_on("t", 0)
    assert (jobs.task().state, jobs.task().done, jobs.versions()) == (TaskState.SUCCEEDED, ROWS, [1] * ROWS)


def test_an_outage_is_no_attempt(jobs: Jobs) -> None:
    class Away(Written):
        def put(self, sheets: object) -> None:
            raise Unavailable("Redis is away")

    jobs.create()
    jobs.service.work_on("t", None)
    for _ in range(5):
        with pytest.raises(Unavailable):
            jobs.another(cache=Away()).work_on("t", 0)
    jobs.act_on_all()
    assert jobs.task().state is TaskState.SUCCEEDED
    assert len(set(jobs.cache.names())) == ROWS


@contextmanager
def failing(jobs: Jobs, condition: str) -> Iterator[None]:
    """History takes no row of which this is true, for a reason that nobody foresaw."""
    jobs.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION E'unforeseen\\nand more of it'; END $$"
    )
    jobs.sql(
        f"CREATE TRIGGER fail BEFORE INSERT ON price_history FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION fail()"
    )
    try:
        yield
    finally:
        jobs.sql("DROP TRIGGER fail ON price_history")


def test_a_part_that_fails_too_often_fails_the_task_the_others_go_on_and_it_can_be_resumed(jobs: Jobs) -> None:
    jobs.create()
    jobs.service.work_on("t", None)
    with failing(jobs, "NEW.product_key = 10 AND NEW.location_key = 1"):
        for n in range(3):
            assert jobs.task().parts_failed == 0, n
            with pytest.raises(Exception, match="unforeseen"):
                jobs.service.work_on("t", 4)
        assert (jobs.task().state, jobs.task().parts_failed) == (TaskState.RUNNING, 1)
        jobs.act_on_all()
        task = jobs.task()
        assert (task.state, task.parts_succeeded, task.error) == (TaskState.FAILED, 4, "unforeseen")
        assert task.ended_at is not None
        with pytest.raises(TaskEnded):
            tasks.cancel(jobs.store, "t")
    resumed = tasks.resume(jobs.store, "t")
    assert (resumed.state, resumed.ended_at, resumed.error) == (TaskState.RUNNING, None, None)
    assert jobs.run().state is TaskState.SUCCEEDED
    assert (jobs.task().done, jobs.versions()) == (ROWS, [1] * ROWS)
    with pytest.raises(TaskEnded):
        tasks.resume(jobs.store, "t")


def test_a_task_that_is_cancelled_stops_at_its_next_batch_and_keeps_what_it_has_done(jobs: Jobs) -> None:
    jobs.create()
    batches: list[int] = []

    def cancel(rows: int, _: int) -> None:
        batches.append(rows)
        if len(batches) == 2:
            assert tasks.cancel(jobs.store, "t").state is TaskState.CANCELLED

    work = jobs.another(on_batch=cancel, part_rows=ROWS)
    work.work_on("t", None)
    work.work_on("t", 0)
    assert batches == [2, 2]
    assert jobs.versions() == [1] * 4
    assert tasks.cancel(jobs.store, "t").state is TaskState.CANCELLED, "once more changes nothing"
    assert jobs.run().state is TaskState.CANCELLED, "what hints are left find nothing to do"
    assert jobs.versions() == [1] * 4
    assert tasks.resume(jobs.store, "t").state is TaskState.RUNNING
    assert jobs.run().state is TaskState.SUCCEEDED
    assert (jobs.task().done, jobs.versions()) == (ROWS, [1] * ROWS)
    with pytest.raises(TaskEnded):
        tasks.cancel(jobs.store, "t")
    for change in (tasks.cancel, tasks.resume):
        with pytest.raises(NotFound):
            change(jobs.store, "unknown")


def test_a_task_that_was_cancelled_before_it_began_can_be_resumed(jobs: Jobs) -> None:
    jobs.create()
    assert tasks.cancel(jobs.store, "t").state is TaskState.CANCELLED
    assert jobs.run().state is TaskState.CANCELLED
    assert tasks.resume(jobs.store, "t").state is TaskState.QUEUED
    assert (jobs.run().state, jobs.versions()) == (TaskState.SUCCEEDED, [1] * ROWS)


def test_a_holder_that_wakes_after_another_has_begun_changes_nothing(jobs: Jobs) -> None:
    """Its lock expired while it was paused between two batches."""
    jobs.create()
    jobs.another(part_rows=ROWS).work_on("t", None)

    def pause(_: int, __: int) -> None:
        jobs.valkey.delete("lock:task:t:0")
        with pytest.raises(Killed):
            jobs.another(cache=dying_after(1)).work_on("t", 0)

    with pytest.raises(LockLost):
        jobs.another(on_batch=pause).work_on("t", 0)
    assert (jobs.task().done, jobs.versions()) == (2, [1] * 4), "what the second has done"
    jobs.valkey.delete("lock:task:t:0")
    jobs.act_on_all()
    assert (jobs.task().state, jobs.task().done, jobs.versions()) == (TaskState.SUCCEEDED, ROWS, [1] * ROWS)


def test_of_two_parts_that_end_at_once_one_ends_the_task(jobs: Jobs) -> None:
    jobs.create()
    jobs.another(part_rows=ROWS // 2).work_on("t", None)
    other = threading.Thread(target=jobs.service.work_on, args=("t", 1))
    with jobs.store.transaction() as tx:
        tx.parts.end("t", 0, TaskState.SUCCEEDED)
        tx.tasks.hold("t")
        other.start()
        eventually(lambda: somebody_waits(jobs))
        assert tx.parts.outcome("t") is TaskState.RUNNING
    other.join()
    assert jobs.task().state is TaskState.SUCCEEDED


def test_workers_share_a_task(jobs: Jobs) -> None:
    jobs.create()
    jobs.service.work_on("t", None)
    caches = [Written() for _ in range(4)]
    start = threading.Barrier(4)

    def work(cache: Written) -> None:
        start.wait()
        worker = jobs.another(cache=cache)
        for part in range(5):
            worker.work_on("t", part)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, caches))
    task = jobs.task()
    assert (task.state, task.done, task.changed, jobs.versions()) == (TaskState.SUCCEEDED, ROWS, ROWS, [1] * ROWS)
    names = [name for cache in caches for name in cache.names()]
    assert len(names) == len(set(names)) == ROWS


def test_who_asks_for_what_has_not_begun_yet_joins_it(jobs: Jobs) -> None:
    coffee = [RowScope(category_key=1)]
    jobs.create("first", coffee)
    second, other = jobs.create("second", coffee), jobs.create("other", [RowScope(category_key=2)])
    assert (second.state, second.joined, other.joined) == (TaskState.QUEUED, "first", None)
    assert jobs.create("second", coffee) == second, "a repeat of the request changes nothing"
    jobs.run("second")
    assert jobs.task("second").state is TaskState.QUEUED, "a joined one has nothing of its own to begin"
    jobs.run("first")
    assert (jobs.task("second").state, jobs.task("second").done) == (TaskState.SUCCEEDED, 2)
    assert jobs.create("third", coffee).joined is None, "nobody joins what has ended"
    jobs.create("another", [*coffee, RowScope(category_key=2)])
    swapped = jobs.create("swapped", [RowScope(category_key=2), RowScope(category_key=1)])
    assert swapped.joined == "another", "the order of scopes says nothing"


def test_a_task_that_sets_a_signal_is_joined_by_nobody(jobs: Jobs) -> None:
    jobs.create("first", signal=SignalChange("cost", 1, 1))
    assert jobs.create("second", signal=SignalChange("cost", 1, 1)).joined is None
    assert jobs.create("third").joined is None


def test_who_asks_for_what_is_running_waits_and_begins_when_it_ends(jobs: Jobs) -> None:
    jobs.create("first")
    jobs.service.work_on("first", None)
    assert jobs.create("second").state is TaskState.WAITING
    assert jobs.create("third").joined == "second"
    jobs.service.work_on("second", None)
    assert jobs.task("second").state is TaskState.WAITING
    jobs.reprice_by(2000)
    jobs.act_on_all()
    assert [jobs.task(name).state for name in ("first", "second", "third")] == [TaskState.SUCCEEDED] * 3
    assert jobs.task("second").started_at == jobs.task("third").started_at
    assert jobs.prices() == [2000] * ROWS


def test_a_request_that_was_joined_is_cancelled_alone(jobs: Jobs) -> None:
    jobs.create("first")
    jobs.create("second")
    jobs.create("third")
    assert tasks.cancel(jobs.store, "third").state is TaskState.CANCELLED
    assert tasks.cancel(jobs.store, "first").state is TaskState.CANCELLED
    second = jobs.task("second")
    assert (second.state, second.joined) == (TaskState.QUEUED, None), "the work is its own now"
    assert jobs.run("second").state is TaskState.SUCCEEDED
    assert jobs.task("third").state is TaskState.CANCELLED
    assert jobs.task("first").state is TaskState.CANCELLED
    assert jobs.prices() == [1000] * ROWS


def test_who_had_joined_a_running_task_that_is_cancelled_joins_the_one_that_waits(jobs: Jobs) -> None:
    jobs.create("first")
    jobs.create("second")
    jobs.service.work_on("first", None)
    jobs.create("third")
    tasks.cancel(jobs.store, "first")
    assert (jobs.task("second").joined, jobs.task("third").state) == ("third", TaskState.QUEUED)
    jobs.run("third")
    assert jobs.task("second").state is TaskState.SUCCEEDED


def test_an_update_whose_request_joins_a_task_is_seen_by_it(jobs: Jobs) -> None:
    """The task cannot begin before the update that relies on it is committed."""
    jobs.create("first")
    begins = threading.Thread(target=jobs.service.work_on, args=("first", None))
    with jobs.store.transaction() as tx:
        tx.catalog.set_signals(LIST_PRICE, [(1, 1, 4000, 1)])
        tx.tasks.create("second", [RowScope()], cause="event:second")
        begins.start()
        eventually(lambda: somebody_waits(jobs))
    begins.join()
    jobs.act_on_all()
    assert jobs.task("second").joined == "first"
    assert jobs.prices()[0] == 4000


def test_an_update_that_comes_while_a_task_begins_makes_another_round(jobs: Jobs) -> None:
    """It finds the task queued, waits for its beginning to commit, and does not join it."""
    jobs.create("first")

    def update() -> None:
        with jobs.store.transaction() as tx:
            tx.catalog.set_signals(LIST_PRICE, [(1, 1, 4000, 1)])
            tx.tasks.create("second", [RowScope()], cause="event:second")

    updates = threading.Thread(target=update)
    with jobs.store.transaction() as tx:
        tx.tasks.begin("first")
        updates.start()
        eventually(lambda: somebody_waits(jobs))
    updates.join()
    assert (jobs.task("second").joined, jobs.task("second").state) == (None, TaskState.WAITING)
    jobs.run("first")
    assert jobs.prices()[0] == 4000


def test_what_was_computed_by_the_rules_before_a_change_is_looked_at_after_it(jobs: Jobs) -> None:
    """An event's transaction has read the old rules; the rules change, and the task for that is begun; only then the
    event's transaction commits. Its row has to be looked at after that."""
    jobs.create("before")
    with jobs.store.transaction() as tx:
        tx.rules.save_policy(ceiling(50), 1)
    jobs.run("before")
    paused, committed = threading.Event(), threading.Event()

    def pause(_: float) -> None:
        paused.set()
        committed.wait(10)

    def change_rules() -> None:
        with jobs.store.transaction() as tx:
            tx.rules.save_policy(ceiling(20), 2)
            tx.tasks.create("change", [RowScope(product_key=1)], cause="event:change")
        jobs.another(pause=pause).work_on("change", None)
        jobs.act_on_all()
        paused.set()

    changes = threading.Thread(target=change_rules)
    with jobs.store.transaction() as tx:
        tx.catalog.set_signals(LIST_PRICE, [(1, 1, 4000, 1)])
        reprice(tx, np.array([(1, 1)], ROW_KEYS), "event:late")
        changes.start()
        assert paused.wait(10)
    committed.set()
    changes.join()
    assert jobs.task("change").state is TaskState.SUCCEEDED
    assert jobs.prices()[0] == 2000


def ceiling(dollars: int) -> Policy:
    """The list price, but at most that; it says nothing of what costs less."""
    return Policy(
        policy_id="p", name="P", kind=PolicyKindName.LIST, ceiling=Decimal(dollars), currency="USD"
    )  # fmt: skip


def test_a_task_does_not_wait_for_rows_that_are_held_for_ever(jobs: Jobs) -> None:
    jobs.create()
    with jobs.store.transaction() as tx:
        tx.prices.lock(np.array([(1, 1)], ROW_KEYS))
        with pytest.raises(Unavailable, match="held for more than"):
            jobs.another(pause=lambda _: None).work_on("t", None)
    make_old(jobs)
    assert hint_abandoned_work(jobs) == [("t", None)]
    jobs.act_on_all()
    assert jobs.task().state is TaskState.SUCCEEDED


def test_an_update_between_the_last_batch_and_the_end_is_not_lost(jobs: Jobs) -> None:
    jobs.create("first")
    work = jobs.another(part_rows=ROWS, batch_rows=ROWS + 1, held_rows=ROWS + 1)
    work.work_on("first", None)
    jobs.hints.clear()

    def update() -> None:
        jobs.cache.before = lambda: None
        with jobs.store.transaction() as tx:
            tx.catalog.set_signals(LIST_PRICE, [(1, 1, 4000, 1)])
            tx.tasks.create("second", [RowScope()], cause="event:second")
        jobs.service.work_on("second", None)  # its hint finds the first running, and is gone

    jobs.cache.before = update
    work.work_on("first", 0)
    assert jobs.task("first").state is TaskState.SUCCEEDED
    assert jobs.prices()[0] == 1000
    jobs.act_on_all()
    assert jobs.task("second").state is TaskState.SUCCEEDED
    assert jobs.prices()[0] == 4000


def test_a_task_whose_only_hint_comes_while_the_running_one_ends_begins_all_the_same(jobs: Jobs) -> None:
    jobs.create("first")
    jobs.service.work_on("first", None)
    jobs.create("second")
    jobs.hints.clear()
    begins = threading.Thread(target=jobs.service.work_on, args=("second", None))
    with jobs.store.transaction() as tx:
        tx.tasks.hold("first")
        tx.tasks.end("first", TaskState.SUCCEEDED)
        begins.start()
        eventually(lambda: somebody_waits(jobs))
    begins.join()
    assert jobs.task("second").state is TaskState.RUNNING


def test_updates_from_everywhere_are_all_in_force_when_all_tasks_have_ended(jobs: Jobs) -> None:
    """Updaters and workers side by side. Every update asks for the same, and nearly all of them join."""
    updates = 40
    done = threading.Event()
    running: list[int] = []

    def update(updater: int) -> None:
        for n in range(updates):
            name = f"u-{updater}-{n}"
            with jobs.store.transaction() as tx:
                tx.catalog.set_signals(LIST_PRICE, [(updater, 1, 2000 + n, n + 1)])
                tx.tasks.create(name, [RowScope()], cause=f"event:{name}")
            jobs.recalculate(name)

    def work() -> None:
        while not done.is_set():
            try:
                jobs.act()
            except IndexError:
                done.wait(0.001)

    def watch() -> None:
        while not done.is_set():
            ((count,),) = jobs.sql("SELECT count(*) FROM tasks WHERE state = 'running'")
            running.append(int(str(count)))

    def all_ended() -> bool:
        return jobs.sql("SELECT count(*) FROM tasks WHERE state IN ('queued', 'running')") == [(0,)]

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work) for _ in range(3)] + [pool.submit(watch)]
        try:
            for updater in [pool.submit(update, n) for n in range(1, 4)]:
                updater.result()
            eventually(all_ended, 60)
        finally:
            done.set()
        for worker in workers:
            worker.result()
    assert jobs.prices() == [2000 + updates - 1 if n in (0, 2, 4) else 1000 for n in range(ROWS)]
    states = {jobs.task(f"u-{updater}-{n}").state for updater in range(1, 4) for n in range(updates)}
    assert states == {TaskState.SUCCEEDED}
    assert max(running) == 1
    ((tasks_done,),) = jobs.sql("SELECT count(*) FROM tasks WHERE state = 'succeeded'")
    assert 1 < int(str(tasks_done)) < 3 * updates


@pytest.mark.parametrize("signal", [LIST_PRICE, "cost"])
def test_a_wide_signal_is_set_batch_by_batch_and_spares_what_was_set_later(jobs: Jobs, signal: str) -> None:
    """One row is set by a later event before the batch that reaches it, one by an earlier event after it."""
    jobs.create(signal=SignalChange(signal, 5000, 10))
    work = jobs.another(part_rows=ROWS)
    work.work_on("t", None)

    def between(row: tuple[int, int], value: int, position: int) -> None:
        with jobs.store.transaction() as tx:
            tx.catalog.set_signals(signal, [(*row, value, position)])
            if signal == LIST_PRICE:
                reprice(tx, tx.rows.keys(BEFORE_ALL, AFTER_ALL, 1, [RowScope(*row[:1], None, None, row[1])]), "n")

    between((9, 1), 7777, 11)
    between((8, 1), 8888, 9)
    jobs.act_on_all()
    between((1, 1), 6666, 9)
    table, column = ("list_prices", "amount") if signal == LIST_PRICE else ("signals", "cost")
    values = [value for (value,) in jobs.sql(f"SELECT {column} FROM {table} ORDER BY product_key, location_key")]
    assert values == [7777 if n == 16 else 5000 for n in range(ROWS)]
    if signal == LIST_PRICE:
        assert jobs.prices() == values
        assert jobs.versions() == [2 if n == 14 else 1 for n in range(ROWS)]


def test_a_wide_signal_that_died_is_resumed(jobs: Jobs) -> None:
    jobs.create(signal=SignalChange(LIST_PRICE, 5000, 10))
    dead = dying_after(1)
    jobs.another(part_rows=ROWS).work_on("t", None)
    with pytest.raises(Killed):
        jobs.another(cache=dead).work_on("t", 0)
    jobs.act_on_all()
    assert (jobs.prices(), jobs.versions()) == ([5000] * ROWS, [1] * ROWS)
    assert len({*dead.names(), *jobs.cache.names()}) == ROWS
    assert {price(sheet) for sheet in jobs.cache.sheets} == {5000}


def test_a_wide_signal_leaves_rows_outside_its_scopes_alone(jobs: Jobs) -> None:
    jobs.create(scopes=[RowScope(location_key=1)], signal=SignalChange("stock", 3, 10))
    jobs.run()
    assert jobs.sql("SELECT location_key, stock, stock_position, count(*) FROM signals GROUP BY 1, 2, 3") == [
        (1, 3, 10, 10)
    ]
    with jobs.store.transaction() as tx:
        assert {currency.code for currency in tx.rows.currencies(RowScope(product_key=1))} == {"USD", "JPY"}
        assert {currency.code for currency in tx.rows.currencies(RowScope(location_key=2))} == {"JPY"}
        assert tx.rows.currencies(RowScope(product_key=99)) == set()


def test_a_list_has_the_newest_first_by_state_and_page_by_page(jobs: Jobs) -> None:
    for name in ("a", "b", "c"):
        jobs.create(name, [RowScope(category_key=1)])
    jobs.create("d", [RowScope(category_key=2)])
    jobs.run("d")

    def names(state: TaskState | None = None, before: str | None = None, limit: int = 10) -> list[str]:
        with jobs.store.transaction() as tx:
            return [task.task_id for task in tx.tasks.page(state, before, limit)]

    assert names() == ["d", "c", "b", "a"]
    assert names(limit=2) == ["d", "c"]
    assert names(before="c") == ["b", "a"]
    assert names(TaskState.QUEUED) == ["c", "b", "a"]
    assert names(TaskState.SUCCEEDED) == ["d"]
    with pytest.raises(NotFound):
        names(before="unknown")
    jobs.service.work_on("a", None)
    jobs.create("e", [RowScope(category_key=1)])
    assert (names(TaskState.WAITING), names(TaskState.QUEUED), names(TaskState.RUNNING)) == (["e"], [], ["c", "b", "a"])


def test_a_part_whose_row_another_transaction_holds_is_left_to_it(jobs: Jobs) -> None:
    """A paused process may still have a transaction open; nobody waits for it."""
    jobs.create()
    jobs.service.work_on("t", None)
    with psycopg.connect(jobs.database_url) as paused:
        paused.execute("SELECT FROM task_parts WHERE part = 0 FOR UPDATE")
        jobs.act_on_all()
        assert jobs.task().parts_succeeded == 4
    jobs.service.work_on("t", 0)
    assert jobs.task().state is TaskState.SUCCEEDED


def hint_abandoned_work(jobs: Jobs) -> list[tuple[str, int | None]]:
    """What a listener hints."""
    jobs.hints.clear()
    hint_abandoned(jobs.store, Locks(jobs.valkey, 30), jobs)
    return list(jobs.hints)


def make_old(jobs: Jobs, seconds: int = 10) -> None:
    for table in ("tasks", "task_parts"):
        jobs.sql(f"UPDATE {table} SET updated_at = updated_at - make_interval(secs => %s)", seconds)


def test_work_that_nobody_does_is_hinted_again(jobs: Jobs) -> None:
    jobs.create("begun")
    jobs.service.work_on("begun", None)
    jobs.hints.clear()
    jobs.create("waits")
    jobs.create("queued", [RowScope(category_key=1)])
    jobs.create("ended", [RowScope(category_key=2)])
    jobs.run("ended")
    jobs.create("cancelled", [RowScope(product_key=3)])
    jobs.service.work_on("cancelled", None)
    tasks.cancel(jobs.store, "cancelled")
    assert hint_abandoned_work(jobs) == [], "it has just been moved"
    make_old(jobs)
    jobs.service.work_on("begun", 1)
    assert set(hint_abandoned_work(jobs)) == {("begun", 0), ("begun", 2), ("begun", 3), ("begun", 4), ("queued", None)}


def test_a_part_that_is_held_or_hinted_already_gets_no_further_hint(jobs: Jobs) -> None:
    jobs.create()
    jobs.service.work_on("t", None)
    make_old(jobs)
    locks, seen = Locks(jobs.valkey, 30), []
    assert locks.hint("task:t:1", 60)
    locks.in_rounds("task:t:0", lambda _: bool(seen.extend(hint_abandoned_work(jobs))), 0)
    assert seen == [("t", 2), ("t", 3), ("t", 4)]


def test_a_task_that_ran_but_was_not_divided_when_its_worker_died_is_begun_again(jobs: Jobs) -> None:
    jobs.create()
    with jobs.store.transaction() as tx:
        assert tx.tasks.begin("t") == [RowScope()]
    make_old(jobs)
    assert hint_abandoned_work(jobs) == [("t", None)]
    jobs.act_on_all()
    assert jobs.task().state is TaskState.SUCCEEDED


def test_an_import_is_given_longer_since_it_shows_less_often_that_it_lives(jobs: Jobs) -> None:
    with jobs.store.transaction() as tx:
        for name in ("import:shop:1", "importing:shop:2"):
            tx.tasks.create(name, [RowScope()], cause="import:shop", shared=False)
    make_old(jobs, 100)
    assert hint_abandoned_work(jobs) == []
    make_old(jobs, 100)
    assert hint_abandoned_work(jobs) == [("import:shop:1", None), ("importing:shop:2", None)]


def test_a_resumed_task_is_hinted_at_once(jobs: Jobs) -> None:
    jobs.create()
    tasks.cancel(jobs.store, "t")
    tasks.resume(jobs.store, "t")
    assert hint_abandoned_work(jobs) == [("t", None)]


def test_who_takes_over_from_a_cancelled_task_is_hinted_at_once(jobs: Jobs) -> None:
    jobs.create("first")
    jobs.create("second")
    tasks.cancel(jobs.store, "first")
    assert hint_abandoned_work(jobs) == [("second", None)]


def test_what_is_older_than_its_days_is_forgotten_and_nothing_else(jobs: Jobs) -> None:
    for name in ("old", "joined", "new"):
        jobs.create(name, [RowScope(category_key=1 if name != "new" else 2)])
    for name in ("old", "new"):
        jobs.run(name)
    jobs.create("unfinished", [RowScope(product_key=3)])
    with jobs.store.transaction() as tx:
        tx.events.ask_claim(["old", "new"])()
    jobs.sql("UPDATE tasks SET ended_at = now() - interval '31 days' WHERE task_id = 'old'")
    jobs.sql("UPDATE tasks SET created_at = now() - interval '31 days' WHERE task_id = 'unfinished'")
    jobs.sql("UPDATE processed_events SET processed_at = now() - interval '31 days' WHERE event_id = 'old'")
    assert forget_old(jobs.store, 30) == 2
    assert jobs.sql("SELECT task_id FROM tasks ORDER BY 1") == [("new",), ("unfinished",)]
    assert jobs.sql("SELECT DISTINCT task_id FROM task_parts") == [("new",)]
    assert jobs.sql("SELECT event_id FROM processed_events") == [("new",)]
    assert forget_old(jobs.store, 30) == 0


def test_much_is_forgotten_in_small_transactions(jobs: Jobs) -> None:
    jobs.sql(
        "INSERT INTO processed_events (event_id, processed_at)"
        " SELECT 'e-' || n, now() - interval '31 days' FROM generate_series(1, 2500) n"
    )
    jobs.sql(
        "CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM gone) > 1000 THEN RAISE EXCEPTION 'too many'; END IF; RETURN NULL; END $$;"
    )
    jobs.sql(
        "CREATE TRIGGER small AFTER DELETE ON processed_events REFERENCING OLD TABLE AS gone"
        " FOR EACH STATEMENT EXECUTE FUNCTION count_them()"
    )
    assert forget_old(jobs.store, 30) == 2500
