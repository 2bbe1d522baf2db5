"""The supervisor, with processes that do as they are told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.local.running import read, record, settings_of_running, stop_leftovers
from app.local.supervisor import LONGEST_DELAY_S, Child, Supervisor
from app.settings import Settings
from tests.support.system import still_running
from tests.support.waiting import eventually

Spawn = Callable[..., Child]
SLEEP = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)
PARENT = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print('two', flush=True); {SLEEP}"
)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(said: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(said.append)
    yield supervisor
    supervisor.stop(hurry=lambda: True)


@pytest.fixture
def spawn(supervisor: Supervisor, tmp_path: Path) -> Spawn:
    def spawn(program: str, name: str = "child", **kwargs: float) -> Child:
        child = Child(name, [sys.executable, "-c", program], tmp_path / f"{name}.log", **kwargs)  # type: ignore[arg-type]
        supervisor.start(child)
        return child

    return spawn


def process_of(child: Child) -> psutil.Process:
    assert child.process is not None
    return psutil.Process(child.process.pid)


def test_the_wait_before_a_restart_doubles_up_to_a_limit(supervisor: Supervisor, spawn: Spawn) -> None:
    child = spawn("raise SystemExit(3)")
    delays = []

    def died_thrice() -> bool:
        supervisor.tick()
        if child.deaths > len(delays):
            delays.append(child.delay_s)
        return len(delays) == 3

    eventually(died_thrice, timeout_s=20)
    assert delays == [0.5, 1.0, 2.0]
    child.deaths = 1000
    assert child.delay_s == LONGEST_DELAY_S


def test_it_says_how_a_child_died_and_where_to_read_more(supervisor: Supervisor, spawn: Spawn, said: list[str]) -> None:
    child = spawn("raise SystemExit('out of luck')")
    eventually(lambda: supervisor.tick() or said)
    assert said == [f"child died (exit code 1); next start in 0.5 s, see {child.log}"]
    assert child.last_lines() == "out of luck"


def test_a_child_that_ignores_its_signal_is_killed(supervisor: Supervisor, spawn: Spawn, said: list[str]) -> None:
    child = spawn(STUBBORN, grace_s=0.2)
    process = process_of(child)
    eventually(lambda: "deaf" in child.last_lines())
    supervisor.stop()
    assert still_running([process]) == []
    assert said == ["child did not stop on SIGTERM"]


def test_a_second_signal_makes_stopping_quicker(supervisor: Supervisor, spawn: Spawn) -> None:
    child = spawn(STUBBORN, grace_s=3600)
    process = process_of(child)
    eventually(lambda: "deaf" in child.last_lines())
    supervisor.stop(hurry=lambda: True)
    assert still_running([process]) == []


def test_what_a_dead_child_left_behind_is_killed_before_the_restart(supervisor: Supervisor, spawn: Spawn) -> None:
    child = spawn(PARENT)
    eventually(lambda: "two" in child.last_lines())
    process = process_of(child)
    grandchildren = process.children()
    assert len(grandchildren) == 1
    process.kill()
    eventually(lambda: supervisor.tick() or child.deaths)
    eventually(lambda: not still_running(grandchildren))


def test_children_stop_in_the_reverse_order_of_their_start(
    supervisor: Supervisor, spawn: Spawn, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    for stage, name in enumerate(("store", "worker", "api")):
        spawn(
            "import signal, sys, time\n"
            f"def stop(*_):\n open({str(order)!r}, 'a').write('{name} ')\n sys.exit()\n"
            "signal.signal(signal.SIGTERM, stop)\nprint('set', flush=True)\ntime.sleep(60)",
            name,
            stage=stage,
        )
    eventually(lambda: all("set" in child.last_lines() for child in supervisor.children))
    supervisor.stop()
    assert order.read_text() == "api worker store "


def test_children_of_one_stage_are_stopped_together(
    supervisor: Supervisor, spawn: Spawn, tmp_path: Path, said: list[str]
) -> None:
    """Each ends only once the other has been told, too."""
    for name, other in (("worker", "listener"), ("listener", "worker")):
        spawn(
            "import pathlib, signal, time\nfolder = pathlib.Path(" + repr(str(tmp_path)) + ")\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nprint('set', flush=True)\n"
            f"signal.sigwait([signal.SIGTERM])\n(folder / '{name}').touch()\n"
            f"while not (folder / '{other}').exists(): time.sleep(0.01)",
            name,
            stage=1,
        )
    eventually(lambda: all("set" in child.last_lines() for child in supervisor.children))
    supervisor.stop()
    assert said == []


def test_who_is_in_a_hurry_says_so_to_each_child(
    supervisor: Supervisor, spawn: Spawn, tmp_path: Path, said: list[str]
) -> None:
    child = spawn(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nprint('set', flush=True)\n"
        "for _ in range(2):\n signal.sigwait([signal.SIGTERM])\n print('told', flush=True)",
        grace_s=3600,
    )
    eventually(lambda: "set" in child.last_lines())
    supervisor.stop(hurry=lambda: "told" in child.last_lines())
    assert said == []


def orphan() -> psutil.Process:
    """A process whose parent has ended, as those of a killed `pricing up`."""
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=2).pid)"
    return psutil.Process(int(subprocess.check_output([sys.executable, "-c", program])))


def test_leftovers_are_stopped_only_if_they_are_provably_ours(said: list[str], tmp_path: Path) -> None:
    ours, another = orphan(), orphan()
    both = [(name, process.pid, int(signal.SIGTERM)) for name, process in (("ours", ours), ("another", another))]
    record(tmp_path, Settings(_env_file=None), both)
    content = json.loads((tmp_path / "run.json").read_text())
    content["processes"][1]["created"] -= 60
    (tmp_path / "run.json").write_text(json.dumps(content))
    stop_leftovers(tmp_path, said.append)
    assert still_running([ours, another]) == [another]
    assert said == [f"Stopping ours (process {ours.pid}), left by an earlier `pricing up`"]
    assert read(tmp_path) is None
    another.kill()


def test_other_commands_find_the_stores_of_a_running_system(tmp_path: Path) -> None:
    running = Settings(_env_file=None, data=tmp_path, port=9123, cache_url="redis://embedded/0")
    record(tmp_path, running, [])
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
    found = settings_of_running(Settings(_env_file=None, data=tmp_path, broker_url="redis://own/0"))
    assert found.port == 9123
    assert found.cache_url == running.cache_url
    assert found.broker_url is not None
    assert found.broker_url.get_secret_value() == "redis://own/0"


def test_the_stores_of_a_system_that_ended_are_not_found(tmp_path: Path) -> None:
    record(tmp_path, Settings(_env_file=None, cache_url="redis://embedded/0"), [])
    content = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(content.replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    assert settings_of_running(Settings(_env_file=None, data=tmp_path)).cache_url is None


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, signal\nfrom pathlib import Path\nfrom app.local.supervisor import Child, Supervisor\n"
        "supervisor = Supervisor(print)\n"
        f"supervisor.start(Child('child', [sys.executable, '-c', {SLEEP!r}], Path({str(tmp_path)!r}) / 'log'))\n"
        f"Path({str(tmp_path)!r}, 'pid').write_text(str(supervisor.running()[0][1]))\nsignal.pause()"
    )
    with psutil.Popen([sys.executable, "-c", program]) as parent:
        pid = int(eventually((tmp_path / "pid").read_text))
        child = psutil.Process(pid)
        eventually(lambda: SLEEP in child.cmdline())
        eventually(lambda: "leash" not in "".join(child.cmdline()))
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not still_running([child]))
