"""Which API key commands on this machine show, and to whom."""

from pathlib import Path

import pytest

from app.local.keys import keep_admin_key, make_secret
from app.local.running import key_headers, record, settings_of_running
from app.settings import Settings

KEY = f"pk_{'a' * 12}_{'b' * 43}"


@pytest.fixture
def running(tmp_path: Path) -> Settings:
    """The settings of a command beside a `pricing up`, which is this process."""
    settings = Settings(_env_file=None, data=tmp_path, port=8123)
    record(tmp_path, settings, [])
    keep_admin_key(tmp_path, KEY)
    return Settings(_env_file=None, data=tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8123", "http://localhost:8123/", "http://[::1]:8123"])
def test_the_key_of_the_first_start_is_shown_to_the_api_that_runs_here(running: Settings, url: str) -> None:
    assert key_headers(running, url) == {"X-API-Key": KEY}


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000", "http://prices.example:8123", "https://prices.example", "nonsense", "http://127.0.0.1:x"],
)
def test_and_to_nobody_else(running: Settings, url: str) -> None:
    assert key_headers(running, url) == {}


def test_a_key_that_is_set_is_shown_to_whoever_is_named(running: Settings) -> None:
    given = Settings(_env_file=None, data=running.data, api_key="pk_given")
    assert key_headers(given, "https://prices.example") == {"X-API-Key": "pk_given"}


def test_where_nothing_runs_and_nothing_is_set_no_key_is_shown(tmp_path: Path) -> None:
    keep_admin_key(tmp_path, KEY)
    settings = Settings(_env_file=None, data=tmp_path / "other")
    assert key_headers(settings, "http://127.0.0.1:8000") == {}


def test_the_secret_is_made_once_for_its_owner_alone_and_found(running: Settings) -> None:
    file = running.data / "key-secret"
    assert settings_of_running(running).key_secret_file is None
    make_secret(file)
    made = file.read_text()
    make_secret(file)
    assert file.read_text() == made
    assert len(made.strip()) >= 43
    assert file.stat().st_mode & 0o777 == (running.data / "admin-key").stat().st_mode & 0o777 == 0o600
    assert settings_of_running(running).key_secret_file == file
    assert sorted(path.name for path in running.data.iterdir()) == ["admin-key", "key-secret", "run.json"]
