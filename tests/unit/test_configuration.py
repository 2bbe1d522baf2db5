"""The page about settings cannot drift from the settings."""

from pathlib import Path

from app.local.configuration import as_markdown, as_text
from app.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_configuration_page_is_up_to_date() -> None:
    assert PAGE.read_text() == as_markdown(), "run `pricing config --markdown > docs/configuration.md`"


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_secret_is_never_shown() -> None:
    settings = Settings(_env_file=None, database_url="postgresql://user:hidden@host/name")
    assert "hidden" not in as_text(settings).plain
