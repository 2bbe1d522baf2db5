"""A real Prometheus with the rules and alerts of deploy/prometheus, where this machine has the programs."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.system import free_port
from tests.support.waiting import eventually

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pricing" / "prometheus"


def program(name: str) -> Path:
    """`prometheus` or `promtool`; skips the test where it is not to be had."""
    found = shutil.which(name) or shutil.which(CACHE / name)
    if found is None:
        pytest.skip(f"there is no {name}: `sh deploy/prometheus/get.sh` gets one from Debian")
    return Path(found)


@dataclass
class Prometheus:
    url: str

    def ask(self, path: str, **params: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10)
        content = response.json()
        assert response.is_success, content
        return content["data"]

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series of an instant query, each with its labels and its value."""
        return [
            {**series["metric"], "value": float(series["value"][1])}
            for series in self.ask("query", query=promql)["result"]
        ]


@contextmanager
def prometheus_of(target: str, data: Path) -> Iterator[Prometheus]:
    """Scrapes one target with the configuration that is deployed, but every second."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (data / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (data / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={data / 'prometheus.yml'}",
                f"--storage.tsdb.path={data / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: httpx.get(f"{prometheus.url}/-/ready").is_success, timeout_s=30)
        yield prometheus
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
