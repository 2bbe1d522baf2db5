"""A real Jaeger on free ports, where this machine has the program."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.system import free_port
from tests.support.waiting import eventually

CONFIG = Path(__file__).parents[2] / "deploy" / "jaeger" / "config.yaml"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
PROGRAM = shutil.which("jaeger") or shutil.which(CACHE / "pricing" / "jaeger" / "jaeger")


@dataclass
class Jaeger:
    """`page` is its API's address, `otlp` takes traces; both are ports of 127.0.0.1."""

    page: int
    otlp: int

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace, as its query API (api/v3) gives them, with `service` added; none as yet, maybe."""
        response = httpx.get(f"http://127.0.0.1:{self.page}/api/v3/traces/{trace_id}", timeout=10)
        if response.status_code == 404:
            return []
        spans = []
        for resource in response.raise_for_status().json()["result"]["resourceSpans"]:
            attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                spans += [{**span, "service": attributes["service.name"]["stringValue"]} for span in scope["spans"]]
        return spans


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    if PROGRAM is None:
        pytest.skip("there is no Jaeger: `sh deploy/jaeger/build.sh` builds one (needs Go)")
    ports = Jaeger(free_port(), free_port())
    env = {"JAEGER_HTTP_PORT": ports.page, "JAEGER_OTLP_PORT": ports.otlp, "JAEGER_GRPC_PORT": free_port()}
    log = tmp_path_factory.mktemp("jaeger") / "jaeger.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "--config", CONFIG],
            env=os.environ | {name: str(port) for name, port in env.items()},
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{ports.page}/api/v3/services").is_success, timeout_s=30)
        yield ports
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # it waits for those who still send it traces
            process.kill()
            process.wait(10)
