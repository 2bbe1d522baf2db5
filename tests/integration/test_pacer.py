"""The generator of constant-rate load, against a server that says what it was asked."""

import json
import shutil
import socketserver
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import load

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (Debian: apt install gcc)")

HELD_S = 0.9


class Slow(BaseHTTPRequestHandler):
    """Answers in two pieces, and nobody before `HELD_S` have passed since the first question; what asks for nothing is
    refused."""

    protocol_version = "HTTP/1.1"
    server: "Asked"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies[body] += 1
        self.server.first_at = min(self.server.first_at, time.monotonic())
        time.sleep(max(0.0, self.server.first_at + HELD_S - time.monotonic()))
        self.send_response(503 if body == b"nothing" else 200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"do")
        self.wfile.flush()
        self.wfile.write(b"ne")

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Asked(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    first_at = float("inf")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Slow)
        self.bodies: Counter[bytes] = Counter()


@pytest.fixture
def server() -> Iterator[Asked]:
    server = Asked()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def paced(server: socketserver.TCPServer, questions: Path, rate: int = 200) -> Any:
    command = [load.built_pacer(), str(server.server_address[1]), str(rate), "1", questions]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)


def test_requests_leave_at_their_rate_and_wait_from_when_they_were_due(server: Asked, tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.write_bytes(b"a price\nanother\nnothing\na last one\n")
    seen = paced(server, questions)
    assert server.bodies == {b"a price": 50, b"another": 50, b"nothing": 50, b"a last one": 50}
    assert (seen["requests"], seen["errors"]) == (200, 50)
    # Half of them were due in the first half second, and waited for the rest of the server's pause.
    assert seen["worst"] >= HELD_S * 1000
    assert (HELD_S - 0.5) * 1000 <= seen["p50"] <= seen["p99"] <= seen["p99.9"] <= seen["worst"]


def test_a_server_that_goes_away_is_no_measurement(server: Asked, tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.write_bytes(b"a price\n")
    server.server_close()
    with pytest.raises(subprocess.CalledProcessError):
        paced(server, questions)
