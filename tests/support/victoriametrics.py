"""A real VictoriaMetrics, where this machine has the program."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stores import temporary_data
from tests.support.system import free_port
from tests.support.waiting import eventually

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pricing" / "victoriametrics"


def program() -> Path:
    """Skips the test where it is not to be had."""
    found = shutil.which("victoria-metrics") or shutil.which(CACHE / "victoria-metrics")
    if found is None:
        pytest.skip("there is no victoria-metrics: `sh deploy/victoriametrics/get.sh` gets it from Debian")
    return Path(found)


class Victoria:
    """On a port and data of its own; can be killed, stopped and started again."""

    def __init__(self, data: Path, port: int | None = None) -> None:
        self.data, self.port = data, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.data / "victoriametrics.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program(),
                    f"-storageDataPath={self.data / 'data'}",
                    f"-httpListenAddr=127.0.0.1:{self.port}",
                    "-dedup.minScrapeInterval=1ms",
                    "-retentionPeriod=10y",
                    "-search.latencyOffset=0s",
                ],
                stdout=log,
                stderr=log,
            )
        eventually(lambda: httpx.get(f"{self.url}/health").is_success, timeout_s=30)

    def tell(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def series(self, match: str) -> list[dict[str, Any]]:
        """Everything that it has of these series: `metric`, `values` and `timestamps` (ms)."""
        httpx.get(f"{self.url}/internal/force_flush", timeout=30).raise_for_status()
        response = httpx.get(f"{self.url}/api/v1/export", params={"match[]": match}, timeout=30).raise_for_status()
        return [json.loads(line) for line in response.text.split("\n") if line]

    def now(self, query: str, interval: str) -> list[dict[str, Any]]:
        """What a panel's query finds at this moment, over an interval such as 1m: `metric` and `value` of each."""
        httpx.get(f"{self.url}/internal/force_flush", timeout=30).raise_for_status()
        minutes = int(interval.removesuffix("m"))
        asked = query.replace("$__rate_interval_ms", str(minutes * 60_000)).replace("$__rate_interval", interval)
        response = httpx.get(f"{self.url}/api/v1/query", params={"query": asked}, timeout=30).raise_for_status()
        found = response.json()["data"]["result"]
        return [{"metric": each["metric"], "value": float(each["value"][1])} for each in found]

    def figure(self, name: str) -> float:
        """The sum of one of its own metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def victoria_metrics() -> Iterator[Victoria]:
    program()
    with temporary_data("pricing-victoriametrics-") as data:
        victoria = Victoria(data)
        victoria.start()
        try:
            yield victoria
        finally:
            victoria.stop()
