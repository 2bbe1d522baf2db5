"""The load tests themselves, for a few seconds each, against one running system of their own."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.support.stores import temporary_data
from tests.support.system import System, environment, free_port

ROOT = Path(__file__).parents[2]
WIDE = "[every]\np95_ms = 60000\np99_ms = 60000\nfailure_share = 0\nstaleness_s = 30\n"
"""Latencies say nothing on a machine that runs other tests; that every answer is right always holds."""

PLAIN = """
import random
from locust import FastHttpUser, task

class Shopper(FastHttpUser):
    @task
    def price(self):
        self.client.post("/api/v1/price", json={
            "product_id": f"P-{random.randint(100, 999)}",
            "user_location": random.choice(["NY", "LA", "MIA"]),
            "is_prime_member": random.random() < 0.5,
        })
"""


@pytest.fixture(scope="module")
def busy() -> Iterator[System]:
    """Load changes prices, which other tests must not see."""
    with temporary_data("pricing-load-") as data:
        system = System(data)
        try:
            yield system.wait_until_ready()
        finally:
            system.stop()


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    file = tmp_path / "limits.toml"
    file.write_text(WIDE)
    return file


def python(*arguments: str | Path, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    known = environment() | ({} if data is None else {"PRICING_DATA": str(data)})
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, timeout=120, check=False)


def play(
    system: System, folder: Path, limits: Path, *options: str, seconds: int = 4
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What Locust said, and its figures."""
    file = folder / "result.json"
    load = ("--host", system.url, "-u", "8", "-t", f"{seconds}s", "--rate", "10", "--limits", limits, "--result", file)
    command = ("locust", "-f", "loadtests/locustfile.py", "--headless", "--catalog", "sample", "--only-summary")
    done = python(*command, *load, *options, data=system.data)
    return done, json.loads(file.read_text()) if file.exists() else {}


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return True


def test_steady_readers_are_answered_rightly_and_see_what_markets_change(
    busy: System, tmp_path: Path, limits: Path
) -> None:
    done, figures = play(busy, tmp_path, limits, "--html", str(tmp_path / "report.html"))
    assert succeeded(done)
    assert figures["breached"] == figures["failures"] == []
    assert figures["reads"]["count"] >= 100
    assert figures["staleness"]["count"] >= 1
    assert sum(figures["timeline"]["reads"]) == figures["reads"]["count"]
    assert figures["reads"]["p50_ms"] <= figures["reads"]["p95_ms"] <= figures["reads"]["max_ms"]
    assert "event to visible price" in (tmp_path / "report.html").read_text()


def test_a_flash_sale_begins_and_ends_for_everybody(busy: System, tmp_path: Path, limits: Path) -> None:
    done, figures = play(busy, tmp_path, limits, "--scenario", "flash-sale", seconds=7)
    assert succeeded(done)
    assert figures["shape"] == "spike"
    assert figures["staleness"]["count"] >= 2


def test_a_cold_start_begins_with_nothing_cached(busy: System, tmp_path: Path, limits: Path) -> None:
    done, figures = play(busy, tmp_path, limits, "--scenario", "cold")
    assert succeeded(done)
    assert figures["reads"]["count"] >= 100


def test_a_cold_start_refuses_to_play_with_another_cache_than_that_of_the_system(
    busy: System, system: System, tmp_path: Path, limits: Path
) -> None:
    command = ("locust", "-f", "loadtests/locustfile.py", "--headless", "--catalog", "sample", "--scenario", "cold")
    done = python(*command, "--host", busy.url, "-t", "4s", "--limits", limits, data=system.data)
    assert done.returncode == 1
    assert "empties another cache" in done.stderr


def test_a_storm_of_events_harms_no_read(busy: System, tmp_path: Path, limits: Path) -> None:
    done, figures = play(busy, tmp_path, limits, "--scenario", "storm", "--events", "100")
    assert succeeded(done)
    assert figures["names"]["/api/v1/events"]["count"] >= 4


def test_a_recalculation_at_the_peak_harms_no_read(busy: System, tmp_path: Path, limits: Path) -> None:
    done, figures = play(busy, tmp_path, limits, "--scenario", "recalculation", seconds=8)
    assert succeeded(done)
    assert figures["names"]["recalculation"]["count"] >= 1


def test_several_processes_give_one_result(busy: System, tmp_path: Path, limits: Path) -> None:
    port = str(free_port())
    options = ("--processes", "2", "--master-bind-port", port, "--master-port", port)
    done, figures = play(busy, tmp_path, limits, *options, "--json-file", str(tmp_path / "locust"), seconds=5)
    assert succeeded(done)
    theirs = next(s for s in json.loads((tmp_path / "locust.json").read_text()) if s["name"] == "/api/v1/price")
    assert figures["reads"]["count"] == theirs["num_requests"] >= 100


def test_a_limit_that_is_breached_ends_with_1_and_is_named(busy: System, tmp_path: Path, limits: Path) -> None:
    limits.write_text(WIDE.replace("p99_ms = 60000", "p99_ms = 0.01") + "[cold]\np95_ms = 0.01\n")
    done, figures = play(busy, tmp_path, limits)
    assert done.returncode == 1
    (sentence,) = figures["breached"]
    assert sentence.startswith("p99_ms: ")
    assert sentence.endswith("the limit is 0.01 ms")
    assert f"Breached: {sentence}" in done.stderr


def test_an_event_that_takes_longer_than_the_limit_is_a_breach(busy: System, tmp_path: Path, limits: Path) -> None:
    limits.write_text(WIDE.replace("staleness_s = 30", "staleness_s = 0.0001") + "[steady]\nfailure_share = 1\n")
    done, figures = play(busy, tmp_path, limits)
    assert done.returncode == 1
    assert all(sentence.startswith("staleness_s: ") for sentence in figures["breached"])
    assert figures["outdated"] >= 1


class Liar(BaseHTTPRequestHandler):
    """Answers every question with a price that is a cent more than its own explanation."""

    protocol_version = "HTTP/1.1"
    quote: ClassVar = {"list_price": 2.0, "base_price": 2.0, "final_price": 2.01, "total": 2.01, "adjustments": [],
                       "rounding_scope": "unit", "source": "cache", "version": 1, "valid_until": None}  # fmt: skip

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        segment = "member" if asked.get("is_prime_member") else "everyone"
        context = {"product_id": asked.get("product_id"), "location": asked.get("user_location"), "segment": segment,
                   "quantity": asked.get("quantity", 1)}  # fmt: skip
        body = json.dumps(self.quote | context).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody asks."""


def test_wrong_prices_are_failures_though_the_status_is_200(tmp_path: Path, limits: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path / "result.json"
        load = ("--host", f"http://127.0.0.1:{server.server_port}", "-u", "2", "-t", "2s", "--rate", "10")
        command = ("locust", "-f", "loadtests/locustfile.py", "--headless", "--catalog", "sample", "--only-summary")
        done = python(*command, *load, "--limits", limits, "--result", file)
        server.shutdown()
    figures = json.loads(file.read_text())
    assert done.returncode == 1
    assert figures["failed"] == figures["requests"] > 0
    assert "do not add up" in done.stderr


def test_make_load_sets_a_run_beside_the_one_before_and_draws_it(busy: System, tmp_path: Path, limits: Path) -> None:
    image = tmp_path / "drawn" / "load.svg"
    load = ("--host", busy.url, "--seconds", "3", "--keep", tmp_path, "--image", image)
    further = ("--catalog", "sample", "--limits", limits, "-u", "5")
    first = python("loadtests", *load, *further, data=busy.data)
    assert succeeded(first)
    assert "no run before" in first.stdout
    before = json.loads((tmp_path / "steady.json").read_text())
    second = python("loadtests", *load, *further, data=busy.data)
    assert succeeded(second)
    now = json.loads((tmp_path / "steady.json").read_text())
    assert now["time"] > before["time"]
    line = next(line for line in second.stdout.splitlines() if "a quote, p50" in line)
    shown = [float(cell.replace(",", "")) for cell in line.split("│")[2:4]]
    assert shown == pytest.approx([figures["reads"]["p50_ms"] for figures in (now, before)], rel=0.01)
    assert image.read_text().rstrip().endswith("</svg>")
    assert (tmp_path / "steady.html").exists()


def test_make_load_ends_with_1_where_a_limit_is_breached(busy: System, tmp_path: Path, limits: Path) -> None:
    limits.write_text(WIDE.replace("p95_ms = 60000", "p95_ms = 0.01"))
    load = ("--host", busy.url, "--seconds", "2", "--keep", tmp_path, "--catalog", "sample", "--limits", limits)
    done = python("loadtests", *load, "-u", "3", data=busy.data)
    assert done.returncode == 1
    assert "Breached: p95_ms" in done.stderr


def test_without_a_system_there_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    done = python("loadtests", "--host", host, "--keep", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "`make run`" in done.stderr


def test_limits_that_cannot_be_read_are_refused_before_any_load(busy: System, tmp_path: Path) -> None:
    done, figures = play(busy, tmp_path, tmp_path / "none.toml")
    assert done.returncode == 1
    assert "none.toml cannot be read" in done.stderr
    assert figures == {}


def test_a_plain_locust_file_passes_with_no_failure(busy: System, tmp_path: Path) -> None:
    plain = tmp_path / "locustfile.py"
    plain.write_text(PLAIN)
    load = ("--headless", "--host", busy.url, "-u", "10", "-r", "10", "-t", "8s", "--json-file", tmp_path / "figures")
    done = python("locust", "-f", plain, *load)
    assert succeeded(done)
    (figures,) = json.loads((tmp_path / "figures.json").read_text()) or [pytest.fail(done.stderr[-3000:])]
    assert figures["num_requests"] > 10
    assert figures["num_failures"] == 0


def test_the_options_say_what_there_is_to_play() -> None:
    done = python("loadtests", "--help")
    assert succeeded(done)
    words = " ".join(done.stdout.split())
    for name in ("steady", "flash-sale", "cold", "storm", "recalculation", "ramp", "spike", "soak", "--limits"):
        assert name in words
