"""What runs during a benchmark: one `pricing up`, and applications beside it under the same server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
START_S = 400.0  # an import of the real catalogue is part of the first start
STOP_S = 60.0


class Server:
    """Gunicorn on a port of its own; `workers` are the processes that answer."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name, self.port, self.process = name, port, process

    @property
    def master(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    @property
    def workers(self) -> list[psutil.Process]:
        return self.master.children()

    def cpu_s(self) -> float:
        """CPU seconds that its workers have used."""
        return sum(times.user + times.system for times in (worker.cpu_times() for worker in self.workers))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_S)


class Product(Server):
    """`pricing up`, with everything that it has on by default."""

    def __init__(self, data: Path, catalog: str, env: Mapping[str, str]) -> None:
        self._data, self._output = data, data / "up.out"
        port = free_port()
        pricing = Path(sys.executable).with_name("pricing")
        options = ["--port", str(port), "--data", str(data), "--catalog", catalog]
        process = _start([str(pricing), "up", *options], _environment(env), self._output)
        super().__init__("service", port, process)

    @property
    def master(self) -> psutil.Process:
        return psutil.Process(self.pid_of("api"))

    def pid_of(self, name: str) -> int:
        """The process that `pricing up` calls so."""
        return next(p["pid"] for p in self._running()["processes"] if p["name"] == name)

    @property
    def stores(self) -> dict[str, str]:
        """Addresses of the embedded stores, and what keys are hashed with, as settings."""
        urls = {f"PRICING_{name.upper()}": url for name, url in self._running()["stores"].items()}
        return urls | {"PRICING_KEY_SECRET_FILE": str(self._data.resolve() / "key-secret")}

    @property
    def key(self) -> dict[str, str]:
        """The header that shows the API key of the first start."""
        return {"X-API-Key": (self._data / "admin-key").read_text().strip()}

    def wait(self) -> "Product":
        _until(lambda: "Ready in" in self._output.read_text(), self.process, self._output)
        return self

    def _running(self) -> dict:
        return json.loads((self._data / "run.json").read_text())


class _Taken(BaseHTTPRequestHandler):
    """Whatever is posted is taken, and forgotten."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def sink() -> Iterator[str]:
    """The address of somebody who takes spans."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Taken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def serve(application: str, log: Path, env: Mapping[str, str], config: str) -> Server:
    """An application, as a call in `module:function()` form, as gunicorn serves the service."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / config), application]
    process = _start(command, _environment({**env, "PRICING_PORT": str(port)}), log)
    _until(lambda: _listens(port), process, log)
    return Server(application, port, process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without any setting of whoever measures, and with `extra`."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PRICING_")} | dict(extra)


def _start(command: list[str], env: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as out:
        return subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def _until(ready, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            sys.exit(f"did not start:\n{output.read_text()[-3000:]}")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
