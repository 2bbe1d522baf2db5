"""Fixtures: a real PostgreSQL and a real Valkey, once per session, and a clean state for each test."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis

from tests.support.waiting import eventually

TEMPLATE = "migrated"


@dataclass
class Stores:
    """The servers of a test session."""

    postgres_url: str
    valkey_url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, migrated, empty database, dropped at the end."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        try:
            yield self.url_of(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def flushed_valkey(self) -> str:
        """The URL of the Valkey, emptied."""
        with redis.Redis.from_url(self.valkey_url) as client:
            client.flushall()
        return self.valkey_url

    def url_of(self, database: str) -> str:
        return urlunsplit(urlsplit(self.postgres_url)._replace(path=f"/{database}"))

    def run(self, statement: str) -> None:
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def temporary_data(prefix: str) -> Iterator[Path]:
    """A data folder that any user may enter: PostgreSQL runs as another one when we are root."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """Both servers, embedded as `pricing up` embeds them."""
    from app.adapters.database import migrate
    from app.local import embedded
    from app.local.stores import answers
    from app.local.supervisor import Supervisor

    with temporary_data("pricing-stores-") as data:
        supervisor = Supervisor(print)
        try:
            postgres, postgres_url = embedded.postgres(data, data / "postgres.log")
            valkey, valkey_url = embedded.broker(data, data / "valkey.log")
            for child in (postgres, valkey):
                supervisor.start(child)
            eventually(lambda: answers(postgres_url) and answers(valkey_url), timeout_s=30)
            servers = Stores(postgres_url, valkey_url)
            servers.run(f"CREATE DATABASE {TEMPLATE}")
            migrate(servers.url_of(TEMPLATE))
            yield servers
        finally:
            supervisor.stop()


@pytest.fixture
def database_url(stores: Stores) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    with stores.database() as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(stores: Stores) -> Iterator[str]:
    """A migrated database that the tests of one module share."""
    with stores.database() as url:
        yield url


@pytest.fixture
def valkey_url(stores: Stores) -> str:
    """An empty Valkey."""
    return stores.flushed_valkey()
