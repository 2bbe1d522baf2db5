"""A VictoriaMetrics on data of its own, where this machine has the program."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx

from loadtests.bench.servers import free_port

START_S = 30.0
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pricing" / "victoriametrics"


def program() -> str | None:
    return shutil.which("victoria-metrics") or shutil.which(CACHE / "victoria-metrics")


class Victoria:
    """May be started again after it was stopped; its data stay."""

    def __init__(self, folder: Path) -> None:
        found = program()
        if found is None:
            sys.exit("no VictoriaMetrics: `sh deploy/victoriametrics/get.sh` gets it")
        self._folder, self._program, self._port = folder, found, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = [f"-storageDataPath={self._folder / 'victoriametrics'}", f"-httpListenAddr=127.0.0.1:{self._port}"]
        with (self._folder / "victoriametrics.log").open("ab") as log:
            command = [self._program, *options, "-dedup.minScrapeInterval=1ms"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > until:
                sys.exit(f"VictoriaMetrics did not start: see {log.name}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_S)
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.TransportError:
            return False
