"""Two minutes of faults, as part of `make test`; `make chaos` goes on for ten."""

import sys

import pytest

from tests.chaos.report import save, stories, table
from tests.chaos.run import Options, run

SEED = 1
SECONDS = 75.0
"""With a system that starts, faults that end and a backlog that is worked off, about two minutes."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def test_nothing_accepted_is_lost_and_nothing_is_applied_twice_whatever_dies(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("chaos")
    result = run(Options(SEED, SECONDS, folder), say)
    save(result, folder / "chaos.json")
    report = "\n\n".join([table(result), *stories(result), f"all of it: {folder}"])
    say(report)
    assert not result.violations, report
    assert result.ledger.counts.total() >= 15
    assert result.figures["became"]["applied"] > 300
