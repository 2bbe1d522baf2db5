"""Who takes part: the processes of one `pricing up`, and beside it a second host whose network and clock can fail.

The second host runs a copy of each service with the same command and environment; only its way to the stores goes
through proxies. What the services are is read from what `pricing up` says that it runs.
"""

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psutil
import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.proxy import Proxy
from tests.support.system import Copy, System, free_port

STORES = ("postgres", "broker", "cache")
SECOND = " 2"
"""What the names of the second host's processes end with."""

CLOCK_SOURCE = Path(__file__).with_name("clock.c")
COMPILER = shutil.which("cc")
"""What makes the second host's clock able to jump; None where there is no C compiler (Debian: apt install gcc)."""


class Fleet:
    """The system and its second host. Names of processes are those of `pricing up`, with " 2" on the second host.

    `poison` is what was sent that nobody can apply; `some_product` what some of it is about.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.copies: dict[str, Copy] = {}
        self.urls = {"api": system.url}
        self.database_url, self.broker_url = system.database_url, system.broker_url
        socket_folder = parse_qs(urlsplit(self.database_url).query)["host"][0]
        self.to_postgres = Proxy(Path(socket_folder) / ".s.PGSQL.5432")
        self.to_broker, self.to_cache = (Proxy(urlsplit(url).port or 0) for url in (self.broker_url, system.cache_url))
        self.broker, self.cache = connect_redis(self.broker_url), connect_redis(system.cache_url)
        self.some_product = ""
        self.poison: list[str] = []
        self._clock = system.data / "clock of the second host"
        self._clock.write_bytes(struct.pack("=q", 0))

    def add_second_host(self) -> None:
        """Start it, with a clock of its own where there is a compiler."""
        database = (
            f"postgresql://postgres@127.0.0.1:{self.to_postgres.port}{urlsplit(self.database_url).path}"
            "?sslmode=disable&gssencmode=disable"
        )
        port = free_port()
        metrics = self.system.data / "metrics of the second host"
        metrics.mkdir()
        changes = {
            "PRICING_DATABASE_URL": database, "PRICING_BROKER_URL": by_way_of(self.to_broker, self.broker_url),
            "PRICING_CACHE_URL": by_way_of(self.to_cache, self.system.cache_url),
            "PRICING_PORT": str(port), "PRICING_METRICS_DIR": str(metrics), "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        }  # fmt: skip
        if COMPILER is not None:
            library = self.system.data / "clock.so"
            subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-o", library, CLOCK_SOURCE], check=True)
            changes |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._clock)}
        self.urls["api" + SECOND] = f"http://127.0.0.1:{port}"
        for name in self.system.pids():
            if name not in STORES:
                root = self.root(name)
                assert root is not None
                log = self.system.data / "logs" / f"{name}{SECOND}.log"
                self.copies[name + SECOND] = Copy(root, changes, log)
        self.tend()

    def proxies(self, *, redis: bool, postgres: bool) -> list[Proxy]:
        """The second host's ways to these stores."""
        return [self.to_broker, self.to_cache] * redis + [self.to_postgres] * postgres

    def set_clock(self, offset_s: int) -> None:
        """How far the second host's clock is ahead, in seconds, from now on."""
        with self._clock.open("r+b") as clock:
            clock.write(struct.pack("=q", offset_s))

    def tend(self) -> None:
        for copy in self.copies.values():
            copy.tend()

    def services(self) -> list[str]:
        """All but the stores, on both hosts."""
        return [*(name for name in self.system.pids() if name not in STORES), *self.copies]

    def root(self, name: str) -> psutil.Process | None:
        """The process by that name, if it runs just now."""
        if name in self.copies:
            return self.copies[name].root()
        try:
            return psutil.Process(self.system.pids()[name])
        except (KeyError, psutil.NoSuchProcess, OSError, ValueError):
            return None

    def tree(self, name: str) -> list[psutil.Process]:
        """A process and all below it, the root first; empty where it does not run."""
        root = self.root(name)
        try:
            return [] if root is None else [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """On a connection of its own: PostgreSQL may have died since the last one."""
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=3) as connection:
            connection.execute("SET statement_timeout = '60s'")
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def postgres_answers(self) -> bool:
        return succeeds(lambda: self.sql("SELECT 1"))

    def stop(self) -> None:
        for copy in self.copies.values():
            copy.tell_to_end()
        for copy in self.copies.values():
            copy.stop()
        self.to_postgres.close()
        self.to_broker.close()
        self.to_cache.close()
        self.broker.close()
        self.cache.close()


def by_way_of(proxy: Proxy, url: str) -> str:
    """A store's URL, at a proxy's port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{proxy.port}"))


def connect_redis(url: str) -> Any:
    """A client that waits at most 3 s and tries once."""
    return redis.Redis.from_url(
        url, decode_responses=True, socket_timeout=3, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
    )


def succeeds(act: Callable[[], object]) -> bool:
    try:
        act()
    except (psycopg.Error, redis.RedisError, OSError):
        return False
    return True
