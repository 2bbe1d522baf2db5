"""docs/catalog.md names every column of every kind."""

import re
from pathlib import Path

import pytest

from app.catalog.rows import MODELS, Kind

PAGE = (Path(__file__).parents[2] / "docs/catalog.md").read_text()


@pytest.mark.parametrize("kind", Kind)
def test_every_column_is_on_the_page_and_no_other(kind: Kind) -> None:
    section = PAGE.split(f"## {kind}\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(MODELS[kind].model_fields)
