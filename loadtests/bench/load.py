"""Load on one server: closed-loop by wrk, constant-rate by the pacer; and checks that the answers are right."""

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from loadtests.bench.servers import ROOT, Server
from loadtests.checks import decode, wrong

CONNECTIONS = 32
SCRIPT = Path(__file__).with_name("wrk.lua")
PACER = Path(__file__).with_name("pacer.c")


class Closed(NamedTuple):
    """Requests a second with every connection always busy, CPU microseconds of the server per request, and how many
    requests failed."""

    per_s: float
    cpu_us: float
    failed: int


def need_generators() -> None:
    for tool in ("wrk", "cc"):
        if shutil.which(tool) is None:
            sys.exit(
                f"{tool} is missing: the benchmark sends requests with wrk and {PACER.name}: apt-get install wrk gcc"
            )


def closed(
    server: Server, path: str, questions: Path, seconds: float, connections: int = CONNECTIONS, may_fail: bool = False
) -> Closed:
    """Every request must succeed, unless they `may_fail`."""
    before = server.cpu_s()
    url = f"http://127.0.0.1:{server.port}{path}"
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT)]
    command = ["wrk", *options, url, "--", str(questions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    cpu_s = server.cpu_s() - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("BENCH "))
    requests, failed, duration_us = map(int, line.split()[1:])
    if (failed and not may_fail) or not requests:
        sys.exit(f"{server.name}: {failed} of {requests} requests failed")
    return Closed(requests / duration_us * 1e6, cpu_s / requests * 1e6, failed)


def paced(server: Server, rate: float, questions: Path, seconds: float) -> dict[str, float]:
    """Latencies in ms from when each request was due, as the pacer prints them."""
    return finished(start_paced(server, rate, questions, seconds), seconds)


def start_paced(server: Server, rate: float, questions: Path, seconds: float) -> subprocess.Popen[str]:
    command = [built_pacer(), server.port, rate, seconds, questions]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


@cache
def built_pacer() -> Path:
    """The program that `PACER` makes."""
    program = ROOT / "build" / PACER.stem
    program.parent.mkdir(exist_ok=True)
    new = program.with_suffix(f".{os.getpid()}")  # others may be running the one that is there
    subprocess.run(["cc", "-O2", "-o", new, PACER], check=True)
    return new.replace(program)


def finished(pacer: subprocess.Popen[str], seconds: float) -> dict[str, float]:
    output, _ = pacer.communicate(timeout=seconds + 30)
    if pacer.returncode:
        sys.exit(f"the pacer ended with {pacer.returncode}: see above")
    seen: dict[str, float] = json.loads(output)
    if seen["errors"]:
        sys.exit(f"{seen['errors']:,} of {seen['requests']:,} paced requests failed")
    return seen


def post(port: int, path: str, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The answer to one request, which must be a success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        content = response.read()
        if response.status >= 300:
            sys.exit(f"{path}: {response.status} {content[:300]!r} to {body[:300]!r}")
        return content
    finally:
        connection.close()


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def quotes(server: Server, questions: Sequence[bytes]) -> list[bytes]:
    """The service's answers, each as the bytes that a single request would get."""
    answers: list[bytes] = []
    for start in range(0, len(questions), 1000):
        body = b'{"items":[%b]}' % b",".join(questions[start : start + 1000])
        items = decode(post(server.port, "/api/v1/prices/batch", body))["items"]
        answers += [dumps(item["quote"]) for item in items]
    return answers


def check(server: Server, questions: Sequence[bytes]) -> None:
    """Every question is answered with its own price, explained to the cent."""
    for question in questions:
        answer = decode(post(server.port, "/api/v1/price", question))
        if problem := wrong(answer, json.loads(question)):
            sys.exit(f"{server.name}: {problem}: {answer} to {question!r}")


def dumps(quote: dict[str, Any]) -> bytes:
    """Plain numbers again, as clients see them."""
    return json.dumps(quote, default=float, separators=(",", ":")).encode()
