"""The whole system as its users have it: `pricing up` in a process of its own, known from outside."""

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.stores import temporary_data
from tests.support.waiting import eventually

PRICING = Path(sys.executable).with_name("pricing")

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class System:
    """One `pricing up`, on a free port and its own data folder.

    `url` is the API's; `database_url`, `broker_url` and `cache_url` are the embedded stores'; `pids()`
    are the processes under the supervisor by name (postgres, broker, cache, worker, listener, api).
    `prefix` goes before the command, to run it as another user for example.
    """

    def __init__(
        self,
        data: Path,
        *options: str,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data / "up.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, PRICING, "up", "--port", str(self.port), "--data", str(data), *options],
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_s: float = 90.0) -> "System":
        """Returns when the API answers /readyz with 200; fails at once if `pricing up` gives up."""

        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"`pricing up` ended with {self.process.returncode}:\n{self.said()}")
            return "Ready in" in self.said()

        eventually(ready, timeout_s)
        return self

    def said(self) -> str:
        """What `pricing up` has printed."""
        return self.output.read_text()

    def running(self) -> dict[str, Any]:
        """What `pricing up` says is running."""
        content: dict[str, Any] = json.loads((self.data / "run.json").read_text())
        return content

    @property
    def database_url(self) -> str:
        return str(self.running()["stores"]["database_url"])

    @property
    def broker_url(self) -> str:
        return str(self.running()["stores"]["broker_url"])

    @property
    def cache_url(self) -> str:
        return str(self.running()["stores"]["cache_url"])

    @property
    def key(self) -> str:
        """The admin key of the first start."""
        return (self.data / "admin-key").read_text().strip()

    @property
    def with_key(self) -> dict[str, str]:
        """The header that shows it."""
        return {"X-API-Key": self.key}

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.running()["processes"]}

    def kill(self, name: str) -> int:
        """SIGKILL one process by name; returns the id it had."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def get(self, path: str) -> int:
        """The status of a GET, or 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def tree(self) -> list[psutil.Process]:
        """`pricing up` and every process below it, to be asked later who is left."""
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Ask it to stop; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


class Copy:
    """A process like one of the system's, started again by `tend` when it has died."""

    def __init__(self, like: psutil.Process, changes: Mapping[str, str], log: Path) -> None:
        self._argv, self._cwd = like.cmdline(), like.cwd()
        self._env = like.environ() | dict(changes)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.deaths = -1

    def tend(self) -> None:
        """To be called from the thread that outlives it: the process ends with that thread."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._end_group()
        self.deaths += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, cwd=self._cwd, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def root(self) -> psutil.Process | None:
        running = self._process is not None and self._process.poll() is None
        return psutil.Process(self._process.pid) if running and self._process else None

    def tell_to_end(self) -> None:
        """With SIGTERM, also where it was stopped."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGCONT)
                self._process.terminate()

    def stop(self, timeout_s: float = 40) -> None:
        self.tell_to_end()
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._end_group()
        self._end_group()
        self._process.wait()

    def _end_group(self) -> None:
        """As a supervisor does, for children that a dead parent left."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without any setting of whoever runs the tests, and with `extra`."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PRICING_")} | dict(extra or {})


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. What only waits for init to collect it has ended."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def system_of_its_own(name: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[System]:
    """A system that is ready, on data of its own; stopped at the end. `name` is in its folder's."""
    with temporary_data(f"pricing-{name}-") as data:
        system = System(data, *options, env=env)
        try:
            yield system.wait_until_ready()
        finally:
            system.stop()


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The system that all end-to-end tests share, with the sample catalogue."""
    with system_of_its_own("e2e") as system:
        yield system
