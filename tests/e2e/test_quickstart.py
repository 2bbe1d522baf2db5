"""The README's first steps, taken from the README and run as they stand, on a free port and in a new folder."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.stores import temporary_data
from tests.support.system import environment, free_port, still_running
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
START, PRICE, EVENT, HISTORY = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


class Quickstart:
    def __init__(self, data: Path) -> None:
        self.port, self.data = free_port(), data
        self.output = data / "out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", START],
                cwd=ROOT,
                env=environment({"ARGS": f"--port {self.port} --data {data}"}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return "Ready in" in self.output.read_text()

        eventually(ready, 120)

    def run(self, command: str) -> Any:
        """What a command of the README answers."""
        here = command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}").replace(".pricing/", f"{self.data}/")
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=30, check=True)
        return json.loads(done.stdout)

    def stop(self) -> list[psutil.Process]:
        """Press Ctrl-C; whatever is left running afterwards."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            if process.is_running() and "pricing" in " ".join(process.cmdline()) and "up" in process.cmdline():
                process.send_signal(signal.SIGINT)
        self.process.wait(60)
        return still_running(family)


@pytest.fixture(scope="module")
def quickstart() -> Iterator[Quickstart]:
    with temporary_data("pricing-quickstart-") as data:
        quickstart = Quickstart(data)
        try:
            quickstart.wait_until_ready()
            yield quickstart
        finally:
            assert quickstart.stop() == []


def test_the_price_that_the_readme_asks_for_is_explained(quickstart: Quickstart) -> None:
    quote = quickstart.run(PRICE)
    assert quote["product_id"] == "P-100"
    assert quote["adjustments"]
    assert quote["rejected"]
    steps = sum(round(step["amount"] * 100) for step in quote["adjustments"])
    assert round(quote["list_price"] * 100) + steps == round(quote["final_price"] * 100)


def test_the_event_that_the_readme_publishes_becomes_history_with_its_cause(quickstart: Quickstart) -> None:
    before = quickstart.run(PRICE)["version"]
    event_id = quickstart.run(EVENT)["event_id"]
    eventually(lambda: quickstart.run(PRICE)["version"] > before, 10)
    newest = quickstart.run(HISTORY)["versions"][0]
    assert newest["cause"] == f"event:{event_id}"


def test_what_the_start_prints_as_a_price_request_prints_a_price(quickstart: Quickstart) -> None:
    printed = next(line for line in quickstart.output.read_text().splitlines() if line.lstrip().startswith("curl"))
    assert quickstart.run(printed)["final_price"] > 0
