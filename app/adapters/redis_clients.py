"""Redis and Valkey clients, and what their errors mean."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from app.errors import Unavailable
from app.observability import metrics

# One quick retry hides a connection that the server closed; more would make an outage slow instead of clear.
_RETRIES = 1
_BACKOFF = ExponentialWithJitterBackoff(base=0.01, cap=0.05)


def make_redis(url: str, timeout_s: float, *, repeats: bool = True) -> redis.Redis:
    """A blocking client; connects on first use. One that does not repeat a command whose answer was lost tells its
    caller, who may have to find out what became of it."""
    retry = Retry(_BACKOFF, _RETRIES if repeats else 0)
    return redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry)


class Connection(Protocol):
    """One of redis-py's, which has no types for this."""

    def send_command(self, *words: bytes | str | int) -> None: ...
    def read_response(self) -> Any: ...
    def disconnect(self) -> None: ...


def make_connection(url: str, timeout_s: float) -> Connection:
    """For one who asks one thing at a time; connects on first use, and again after each failure. Nothing is repeated.
    The client reads the address, and is not used."""
    return make_redis(url, timeout_s, repeats=False).connection_pool.make_connection()


def make_async_redis(url: str, timeout_s: float, *, reconnects: bool = True) -> redis.asyncio.Redis:
    """A client for an event loop; connects on first use. Waits for a connection where all are busy. One that does
    not reconnect by itself tells its caller of every lost connection, subscriptions too."""
    retry = AsyncRetry(_BACKOFF, _RETRIES) if reconnects else AsyncRetry(NoBackoff(), 0, supported_errors=())
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=64,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=retry,
    )
    return redis.asyncio.Redis.from_pool(pool)


def count_connections(clients: Mapping[str, redis.Redis | redis.asyncio.Redis]) -> None:
    """Note how many connections this process has, by what they are for."""
    for role, client in clients.items():
        (idle, _), (in_use, _) = client.connection_pool.get_connection_count()
        metrics.redis_connections.labels(role, "idle").set(idle)
        metrics.redis_connections.labels(role, "in_use").set(in_use)


@contextmanager
def unavailable_if_down(upstream: str = "broker") -> Iterator[None]:
    """Turn lost connections, time-outs and servers that cannot serve now into `Unavailable`."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError) as error:
        raise Unavailable(f"Redis is not available: {error}", upstream=upstream) from error
    except redis.ResponseError as error:
        if not _PASSES.match(str(error)):
            raise
        raise Unavailable(f"Redis is not available: {error}", upstream=upstream) from error


# Answers of a server that cannot write its file, waits for a script, or lacks replicas. Pipelines put words before.
_PASSES = re.compile(
    r"(Command # .* caused error: )?(MISCONF|BUSY|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN) ", re.DOTALL
)


@contextmanager
def unavailable_if_refused() -> Iterator[None]:
    """Turn every error of Redis into `Unavailable`, also of one that cannot write its file or is busy with a script."""
    try:
        yield
    except redis.RedisError as error:
        raise Unavailable(f"Redis is not available: {error}") from error
