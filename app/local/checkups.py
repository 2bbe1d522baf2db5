"""What `pricing doctor` asks of the stores and of the processes behind them."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import redis
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy.exc import ProgrammingError

from app.adapters.database import migration_config
from app.adapters.event_log import LISTENER_KEYS
from app.adapters.task_queue import make_celery
from app.bootstrap import open_key_store
from app.errors import InvalidInput, Unavailable
from app.local.configuration import variable
from app.local.stores import connect_postgres, connect_redis, first_line
from app.settings import Settings

OLDEST_POSTGRES = 15
OLDEST = {"Redis": 7, "Valkey": 8}
PING_S = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `well` is None where there was nothing to look at; `mend` is what to do."""

    what: str
    well: bool | None
    seen: str
    mend: str = ""


def postgres(url: SecretStr | None) -> Iterator[Finding]:
    """PostgreSQL answers, is new enough, has our schema and products."""
    if url is None:
        yield not_named("PostgreSQL", "database_url")
        return
    try:
        connection = connect_postgres(url.get_secret_value())
    except psycopg.Error as error:
        yield Finding("PostgreSQL", False, first_line(error), "start it, or correct PRICING_DATABASE_URL")
        return
    with connection:
        version = connection.info.server_version // 10_000
        yield judged("PostgreSQL", version >= OLDEST_POSTGRES, f"version {version}", f"use ≥ {OLDEST_POSTGRES}")
        found = one(connection, "SELECT version_num FROM alembic_version")
        newest = ScriptDirectory.from_config(migration_config("")).get_current_head()
        yield judged("schema", found == newest, f"revision {found}, the newest is {newest}", "`pricing migrate`")
        filled = one(connection, "SELECT 1 FROM products LIMIT 1") is not None
        seen = "products are there" if filled else "no products"
        yield judged("catalogue", filled, seen, "`pricing import`, or `pricing up` with --catalog")


def api_keys(settings: Settings) -> Finding:
    """What keys are hashed with is there, and a usable admin key was hashed with it."""
    if settings.database_url is None:
        return Finding("API keys", None, "need PostgreSQL")
    try:
        with open_key_store(settings) as (store, key_hash), store.transaction() as tx:
            there = tx.keys.has_admin(key_hash.mark)
    except InvalidInput as error:
        return Finding("API keys", False, str(error), "set one to what every process has")
    except (Unavailable, ProgrammingError):  # what is wrong with it is said above
        return Finding("API keys", None, "need PostgreSQL")
    seen = "an admin key works" if there else "there is no admin key that works with this PRICING_KEY_SECRET"
    return judged("API keys", there, seen, "set the secret that keys were made with, or make one: `pricing keys first`")


def one(connection: psycopg.Connection[Any], query: str) -> Any:
    """The first value of the first row; None where there is no row or no such table."""
    try:
        row = connection.execute(query.encode()).fetchone()
    except psycopg.errors.UndefinedTable:
        connection.rollback()
        return None
    return row[0] if row else None


def redis_like(what: str, name: str, url: SecretStr | None, must_keep: bool) -> Iterator[Finding]:
    """Redis or Valkey answers and is new enough; with `must_keep`, it neither evicts nor forgets."""
    if url is None:
        yield not_named(what, name)
        return
    try:
        client = connect_redis(url.get_secret_value())
    except (redis.RedisError, ValueError) as error:
        yield Finding(what, False, first_line(error), f"start it, or correct {variable(name)}")
        return
    with client:
        info: Any = client.info()
        product = "Valkey" if "valkey_version" in info else "Redis"
        version = info[f"{product.lower()}_version"]
        new_enough = int(version.split(".")[0]) >= OLDEST[product]
        yield judged(what, new_enough, f"{product} {version}", f"use {product} ≥ {OLDEST[product]}")
        if must_keep:
            policy = info["maxmemory_policy"]
            yield judged(
                f"{what} eviction",
                policy == "noeviction",
                policy,
                "`maxmemory-policy noeviction`: it would lose events",
            )
            yield durability(what, client, kept=bool(info["aof_enabled"]))


def durability(what: str, client: "redis.Redis", *, kept: bool) -> Finding:
    """Whether what it has answered outlives it. One that does not tell is believed to."""
    what = f"{what} durability"
    if not kept:
        return Finding(what, False, "keeps events in memory only", "`appendonly yes`: a crash would lose events")
    try:
        syncs = str(client.config_get("appendfsync").get("appendfsync", "unknown"))
    except redis.ResponseError:  # who runs it for others says nothing of it
        syncs = "unknown"
    seen = f"appends every command to a file (appendfsync {syncs})"
    mend = "`appendfsync always`: killed while it syncs, it would lose what it answered meanwhile"
    return judged(what, syncs != "everysec", seen, mend)


def consumers(settings: Settings) -> Iterator[Finding]:
    """A worker answers, and a listener reads the stream."""
    url = settings.events_url
    try:
        if url is None:
            raise ValueError("no broker to ask")
        client = connect_redis(url.get_secret_value())
    except (redis.RedisError, ValueError):
        yield Finding("worker", None, "needs the broker")
        yield Finding("listener", None, "needs the broker")
        return
    application = make_celery(url.get_secret_value())
    workers = application.control.ping(timeout=PING_S)
    application.close()
    start = "`pricing up` starts one, or `{}`"
    yield judged("worker", bool(workers), f"{len(workers)} answer", start.format("celery -A workers.celery_app worker"))
    with client:
        alive = sum(1 for _ in client.scan_iter(f"{LISTENER_KEYS}*"))
    yield judged("listener", alive > 0, f"{alive} read the stream", start.format("python -m listener"))


def tracing(settings: Settings) -> Finding:
    """Something listens where spans are to go."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return Finding("tracing", None, "spans go nowhere; set PRICING_OTLP_ENDPOINT to export them")
    host, port = endpoint.host or "", endpoint.port or 4318
    try:
        socket.create_connection((host, port), timeout=PING_S).close()
    except OSError as error:
        mend = "start the collector, or correct or unset PRICING_OTLP_ENDPOINT"
        return Finding("tracing", False, f"{host}:{port}: {first_line(error)}", mend)
    return Finding("tracing", True, f"{host}:{port} takes connections")


def judged(what: str, well: bool, seen: str, mend: str) -> Finding:
    """A finding that says how to mend it only if it is wrong."""
    return Finding(what, well, seen, "" if well else mend)


def not_named(what: str, name: str) -> Finding:
    """Nothing to look at, which is no fault before the first start."""
    return Finding(what, None, f"{variable(name)} is not set and no `pricing up` runs", "`pricing up` embeds one")
