"""Real Celery workers at one recalculation: they share it, and a killed one's share is done once, by others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from app.adapters.locks import Locks
from app.adapters.task_queue import TaskQueue, make_celery
from app.domain.task import Task, TaskState
from app.services.recalculation import hint_abandoned
from tests.support.recalculating import Jobs
from tests.support.waiting import eventually

PRODUCTS = 10_000
ROWS = 2 * PRODUCTS
PATIENCE_S = 120

# A busy machine takes long to import Python programs, but a batch is quick: small ones leave time to be killed in.
SETTINGS = {
    "PRICING_RECALCULATION_BATCH_SIZE": "250",
    "PRICING_RECALCULATION_PART_SIZE": "2500",
    "PRICING_LOCK_TTL_S": "1",
}


class Workers:
    """Worker processes for recalculations, each with one child."""

    def __init__(self, jobs: Jobs, valkey_url: str, logs: Path) -> None:
        self._jobs, self._logs = jobs, logs
        urls = {"PRICING_DATABASE_URL": jobs.database_url, "PRICING_CACHE_URL": valkey_url}
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("PRICING_")} | urls | SETTINGS
        self.processes: list[subprocess.Popen[bytes]] = []
        self._locks = Locks(jobs.valkey, 1)
        self.queue = TaskQueue(make_celery(valkey_url), jobs.valkey, self._locks)

    def start(self) -> psutil.Process:
        number = len(self.processes)
        celery = [sys.executable, "-m", "celery", "-A", "workers.celery_app", "worker", "--concurrency=1"]
        options = ["--without-gossip", "--without-mingle", "-Q", "pricing.jobs", "-n", f"w{number}@test"]
        with (self._logs / f"{number}.log").open("wb") as log:
            process = subprocess.Popen([*celery, *options], env=self._env, stdout=log, stderr=log)
        self.processes.append(process)
        return psutil.Process(process.pid)

    def log(self, number: int) -> str:
        return (self._logs / f"{number}.log").read_text()

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)

    def listen(self) -> Task:
        """What a listener does for tasks, and how far the task is."""
        hint_abandoned(self._jobs.store, self._locks, self.queue)
        return self._jobs.task()

    def ended(self) -> bool:
        return self.listen().state is TaskState.SUCCEEDED


@pytest.fixture
def workers(jobs: Jobs, valkey_url: str, tmp_path: Path) -> Iterator[Workers]:
    jobs.add_products(11, PRODUCTS)
    workers = Workers(jobs, valkey_url, tmp_path)
    try:
        yield workers
    finally:
        workers.stop()


def cached_versions(valkey: redis.Redis) -> list[int]:
    """The versions of all prices in the cache."""
    slots: list[bytes] = valkey.mget(list(valkey.scan_iter("price:*", count=10_000)))
    return [int(slot.split(b" ", 1)[0]) for slot in slots]


def turns(workers: Workers, number: int) -> int:
    """How many tasks of a recalculation a worker has done, by its log."""
    return sum("pricing.recalculate" in line and "succeeded" in line for line in workers.log(number).splitlines())


def test_two_workers_do_parts_of_the_same_task(jobs: Jobs, workers: Workers) -> None:
    for _ in range(2):
        workers.start()
    eventually(lambda: all("ready" in workers.log(n) for n in range(2)), PATIENCE_S)
    jobs.create()
    workers.queue.recalculate("t")
    eventually(lambda: jobs.task().state is TaskState.SUCCEEDED, PATIENCE_S)
    task = jobs.task()
    assert (task.done, task.changed, task.parts, task.parts_succeeded) == (ROWS, ROWS, 8, 8)
    assert jobs.versions() == [1] * ROWS
    assert min(turns(workers, 0), turns(workers, 1)) >= 2


def test_workers_that_are_killed_lose_nothing_and_double_nothing(jobs: Jobs, workers: Workers) -> None:
    first = workers.start()
    jobs.create()
    workers.queue.recalculate("t")
    for n in range(1, 3):
        least = jobs.task().done
        eventually(lambda least=least: least < workers.listen().done < ROWS, PATIENCE_S)  # type: ignore[misc]
        doomed = [*first.children(recursive=True), first]
        first = workers.start()
        for process in doomed:
            process.send_signal(signal.SIGKILL)
        assert jobs.task().state is TaskState.RUNNING, n
    eventually(workers.ended, PATIENCE_S)
    task = jobs.task()
    assert (task.done, task.total) == (ROWS, ROWS)
    assert jobs.versions() == [1] * ROWS
    assert cached_versions(jobs.valkey) == [1] * ROWS
