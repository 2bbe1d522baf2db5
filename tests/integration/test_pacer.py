"""The generator of constant-rate load, against a server that says what it was asked."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests.bench import load

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="no Linux, or no C compiler (Debian: apt install gcc)"
)

HELD_S = 0.9


class Slow(BaseHTTPRequestHandler):
    """Answers in two pieces, and nobody before `held_s` have passed since the first question; what asks for nothing is
    refused, and what tells it to go away is not answered."""

    protocol_version = "HTTP/1.1"
    server: "Asked"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.books:
            self.server.bodies[body] += 1
            self.server.asked_at.append(time.monotonic())
        if body == b"go away":
            self.close_connection = True
            return
        if self.server.held_s:
            time.sleep(max(0.0, self.server.asked_at[0] + self.server.held_s - time.monotonic()))
        self.send_response(503 if body == b"nothing" else 200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"do")
        self.wfile.flush()
        self.wfile.write(b"ne, done" if body == b"twice" else b"ne")

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Asked(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    held_s = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Slow)
        self.books = threading.Lock()
        self.bodies: Counter[bytes] = Counter()
        self.asked_at: list[float] = []


@pytest.fixture
def server() -> Iterator[Asked]:
    server = Asked()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def paced(server: Asked, folder: Path, questions: bytes, rate: int = 200) -> "subprocess.CompletedProcess[str]":
    (folder / "questions").write_bytes(questions)
    command = [load.built_pacer(), str(server.server_address[1]), str(rate), "1", folder / "questions"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)


def test_requests_leave_when_they_are_due(server: Asked, tmp_path: Path) -> None:
    began = time.monotonic()
    done = paced(server, tmp_path, b"a price\nanother\n", rate=100)
    seen = json.loads(done.stdout)
    assert (seen["requests"], seen["errors"]) == (100, 0)
    # A slow machine may be late with any of them, the first too, but none leaves before its time.
    due = [began + nth / 100 for nth in range(100)]
    assert all(at >= when for at, when in zip(sorted(server.asked_at), due, strict=True))


def test_what_has_to_wait_has_waited_from_when_it_was_due(server: Asked, tmp_path: Path) -> None:
    server.held_s = HELD_S
    done = paced(server, tmp_path, b"a price\nanother\nnothing\na last one\n")
    seen = json.loads(done.stdout)
    assert server.bodies == {b"a price": 50, b"another": 50, b"nothing": 50, b"a last one": 50}
    assert (seen["requests"], seen["errors"]) == (200, 50)
    # Half of them were due in the first half second, and waited for the rest of the server's pause.
    assert seen["worst"] >= HELD_S * 1000
    assert (HELD_S - 0.5) * 1000 <= seen["p50"] <= seen["p99"] <= seen["p99.9"] <= seen["worst"]


@pytest.mark.parametrize(
    ("last", "said"), [(b"go away", "closed a connection"), (b"twice", "more than an answer|nobody asked for")]
)
def test_a_server_that_breaks_off_or_says_too_much_is_no_measurement(
    server: Asked, tmp_path: Path, last: bytes, said: str
) -> None:
    done = paced(server, tmp_path, b"a price\n" * 50 + last + b"\n")
    assert done.returncode != 0
    assert not done.stdout
    assert re.search(said, done.stderr)
