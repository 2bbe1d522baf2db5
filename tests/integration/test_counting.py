"""Processes that count in one folder, die and are followed by others: what a scrape says of them all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.observability.exposition import exposition
from app.observability.seats import Seats
from tests.support.metrics import Series, counted, ran_backwards, series
from tests.support.waiting import eventually

COUNT = """
import sys
from app.observability import metrics
metrics.present("worker", revision=None)
metrics.near_cache_entries.set(10)
metrics.oldest_event_age.set(float(sys.argv[1]))
while True:
    metrics.quotes.labels("near_cache").inc()
    metrics.task_wait.labels("pricing.recalculate").observe(0.01)
"""
FORK = """
import os, sys
from app.observability import metrics
metrics.quotes.labels("near_cache").inc()
if os.fork():
    os.wait()
    metrics.quotes.labels("near_cache").inc(10)
else:
    metrics.quotes.labels("near_cache").inc(100)
"""
QUOTES = ("pricing_quotes_total", frozenset({("source", "near_cache")}))


class Counters:
    """Processes that count as fast as they can, until they are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, age: float = 1.0, code: str = COUNT) -> subprocess.Popen[bytes]:
        env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self.folder)}
        self.running.append(subprocess.Popen([sys.executable, "-c", code, str(age)], env=env))
        return self.running[-1]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def scrape(self) -> str:
        return exposition(Seats(self.folder)).decode()

    def series(self) -> Series:
        return series(self.scrape())

    def alive(self) -> float:
        return self.series().get(("pricing_processes", frozenset({("kind", "worker")})), 0.0)

    def files(self) -> set[str]:
        return {path.name for path in self.folder.glob("*.db")}


@pytest.fixture
def counters(tmp_path: Path) -> Iterator[Counters]:
    counters = Counters(tmp_path)
    yield counters
    for process in counters.running:
        with suppress(ProcessLookupError):
            counters.kill(process)


def test_counters_never_run_backwards_and_files_do_not_gather_however_often_processes_are_killed(
    counters: Counters,
) -> None:
    alive = [counters.start(), counters.start()]
    eventually(lambda: counters.alive() == 2)
    before, files = counted(counters.scrape()), counters.files()
    for _ in range(6):
        counters.kill(alive.pop(0))
        alive.append(counters.start())
        until = before.get(QUOTES, 0.0) + 1000
        while before[QUOTES] < until or counters.alive() < 2:
            after = counted(counters.scrape())
            assert ran_backwards(before, after) == []
            before = after
    # Whoever starts while another one asks who lives may take the next seat.
    assert len(counters.files()) <= len(files) * 2
    seats = {name.rpartition("_")[2] for name in counters.files()}
    assert len(seats) <= 3


def test_gauges_of_the_dead_vanish_at_once(counters: Counters) -> None:
    first = counters.start(age=7)
    eventually(lambda: counters.alive() == 1)
    entries, age = ("pricing_near_cache_entries", frozenset[tuple[str, str]]()), (
        "pricing_oldest_unapplied_event_age_seconds", frozenset[tuple[str, str]]()
    )  # fmt: skip
    assert (counters.series()[entries], counters.series()[age]) == (10, 7)
    counters.kill(first)
    assert not {entries, age} & set(counters.series())
    counters.start(age=3)
    eventually(lambda: counters.series().get(age) == 3)
    second = counters.start(age=4)
    eventually(lambda: counters.series().get(age) == 4)
    assert counters.series()[entries] == 20
    counters.kill(second)
    assert (counters.series()[entries], counters.series()[age]) == (10, 3)


def test_a_process_that_is_stopped_still_has_its_seat(counters: Counters) -> None:
    stopped = counters.start()
    eventually(lambda: counters.alive() == 1)
    stopped.send_signal(signal.SIGSTOP)
    counters.start()
    eventually(lambda: counters.alive() == 2)


def test_a_fork_counts_for_itself(counters: Counters) -> None:
    assert counters.start(code=FORK).wait() == 0
    assert counters.series()[QUOTES] == 111
    assert {name for name in counters.files() if name.startswith("counter_")} == {"counter_0.db", "counter_1.db"}


def test_what_a_process_has_only_begun_to_make_holds_up_no_scrape(counters: Counters) -> None:
    (counters.folder / "counter_5.db").touch()
    (counters.folder / "gauge_livesum_5.db").touch()
    assert counters.scrape() == "# EOF\n"


class Renewed(Seats):
    """A seat that is taken anew at the worst moment: one of its gauges begins again when the files have been listed."""

    def files(self) -> list[str]:
        listed = super().files()
        gauge = self.folder / "gauge_livemax_0.db"
        if str(gauge) in listed:
            gauge.unlink()
            gauge.touch()
        return listed


def test_a_gauge_that_begins_again_while_it_is_read_holds_up_no_scrape(counters: Counters) -> None:
    counters.start()
    eventually(lambda: counters.alive() == 1)
    assert QUOTES[0] in exposition(Renewed(counters.folder)).decode()
