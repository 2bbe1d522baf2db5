"""Do the stores answer? Asked by `pricing up` before it starts, and by `pricing doctor`."""

from typing import Any

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local import SetUpError
from app.settings import Settings

TIMEOUT_S = 5


def connect_postgres(url: str) -> psycopg.Connection[Any]:
    """A connection, waiting at most 5 s. Raises psycopg.OperationalError."""
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), connect_timeout=TIMEOUT_S)


def connect_redis(url: str) -> "redis.Redis":
    """A client that has been answered once, waiting at most 5 s. Raises redis.RedisError or ValueError."""
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except BaseException:
        client.close()
        raise
    return client


def answers(url: str) -> bool:
    """Whether the store at `url` serves commands."""
    try:
        if url.startswith("postgres"):
            connect_postgres(url).close()
        else:
            connect_redis(url).close()
    except (psycopg.Error, redis.RedisError):
        return False
    return True


def check_named_stores(settings: Settings) -> None:
    """Every store that the settings name answers; raises SetUpError for the first that does not."""
    for name, product in (
        ("database_url", "PostgreSQL"),
        ("cache_url", "The cache"),
        ("broker_url", "The broker"),
    ):
        url = getattr(settings, name)
        if url is None:
            continue
        try:
            connect = connect_postgres if name == "database_url" else connect_redis
            connect(url.get_secret_value()).close()
        except (psycopg.Error, redis.RedisError, ValueError) as error:
            variable = f"PRICING_{name.upper()}"
            raise SetUpError(
                f"{product} does not answer ({first_line(error)}): start it, or correct {variable}, "
                f"or unset {variable} to use the embedded one."
            ) from error


def create_database(maintenance_url: str, name: str) -> None:
    """Make the database `name` if it is missing."""
    with connect_postgres(maintenance_url) as connection:
        connection.autocommit = True
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
