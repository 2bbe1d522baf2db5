"""Alerts fire when they should, and only then: deploy/prometheus/tests, run by promtool."""

import subprocess
from pathlib import Path

import pytest

from tests.support.prometheus import FOLDER, program


@pytest.mark.parametrize("tests", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(tests: Path) -> None:
    done = subprocess.run([program("promtool"), "test", "rules", tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_one() -> None:
    done = subprocess.run([program("promtool"), "check", "config", FOLDER / "prometheus.yml"], capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
