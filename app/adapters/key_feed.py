"""The feed that keeps an API process' keys up to date, over a connection to PostgreSQL of its own.

A look asks for one number, which changes with every key, and for what has changed since the last. There is a look every
`LOOK_S`, and one when an unknown key is shown: all that wait for one share it, and two looks are `LEAST_S` apart, so
that whoever guesses keys costs PostgreSQL nothing more. An answer that does not come within `ANSWER_S` does not come:
the connection is half-open or the server hangs, and another is made. So a revocation is known after `LOOK_S`, twice
`ANSWER_S` and the time of connecting where PostgreSQL can be reached. Where it cannot, what is known stays known.
"""

import asyncio
import math
import time
from contextlib import suppress
from typing import Any

import psycopg
import structlog
from psycopg.abc import RV, PQGen

from app.adapters.key_tables import rate_limit
from app.domain.api_key import Caller, Scope
from app.errors import Unavailable
from app.observability import metrics
from app.services.callers import KeyRing

LOOK_S = 0.5
ANSWER_S = 0.5
CONNECT_S = 0.75
LEAST_S = 0.05

_LAST_CHANGE = "SELECT tableoid, change FROM key_changes"
_CHANGES = """
    SELECT hash, key_id, scopes, limit_requests, limit_window_s, expires_at, revoked_at
    FROM api_keys WHERE change > %s AND mark = %s
"""

_Row = tuple[Any, ...]
_logger = structlog.get_logger(__name__)


class _ImpatientConnection(psycopg.AsyncConnection[_Row]):
    """A cancelled wait would first ask the server, for seconds, to end the query; one that runs out does not."""

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:  # noqa: ASYNC109
        return await super().wait(gen, interval, ANSWER_S if timeout is None else timeout)


class KeyFeed:
    """Brings to `ring` the keys that were hashed with the secret of `mark`."""

    def __init__(self, database_url: str, mark: bytes, ring: KeyRing) -> None:
        self._url, self._mark, self._ring = database_url, mark, ring
        self._connection: _ImpatientConnection | None = None
        self._seen: tuple[int, int] | None = None
        """The last change, and of which table; None on a new connection, which may be to anything."""
        self._waiting: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False
        self._looked_at = self._failed_at = time.monotonic()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._hang_up()

    async def catch_up(self) -> None:
        """Returns when the ring has all that was committed before this was called. Raises `Unavailable`; at once where
        that was found out a moment ago, so that an outage holds nobody up."""
        if self._away and time.monotonic() - self._failed_at < LOOK_S:
            raise Unavailable("API keys could not be looked up a moment ago", upstream="postgresql")
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._wanted.set()
        await waiting

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            waiting, self._waiting = self._waiting, []
            self._wanted.clear()
            error = await self._try()
            for future in waiting:
                if not future.done():  # whoever waited may have gone
                    future.set_result(None) if error is None else future.set_exception(error)
            metrics.api_keys_known.set(len(self._ring))
            metrics.api_keys_age.set(time.monotonic() - self._looked_at)
            await asyncio.sleep(LEAST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(began + LOOK_S - time.monotonic()):
                    await self._wanted.wait()

    async def _try(self) -> Unavailable | None:
        """Look; where the connection fails that was good before, once more over another."""
        error = await self._failure()
        if error is not None and not self._away:
            error = await self._failure()
        if error is None:
            if self._away:
                _logger.info("API keys are looked up again")
            self._away, self._looked_at = False, time.monotonic()
            return None
        told = str(error).partition("\n")[0] or "no answer in time"
        if not self._away:
            _logger.warning("API keys cannot be looked up; those that are known go on", error=told)
        self._away, self._failed_at = True, time.monotonic()
        return Unavailable(f"API keys cannot be looked up: {told}", upstream="postgresql")

    async def _failure(self) -> Exception | None:
        try:
            await self._look()
        except Exception as error:  # whatever it is, the next look must come: revocations depend on it
            self._hang_up()
            return error
        return None

    async def _look(self) -> None:
        if self._connection is None:
            async with asyncio.timeout(CONNECT_S):
                self._connection = await _ImpatientConnection.connect(
                    self._url, autocommit=True, application_name="pricing keys"
                )
        table, change = await (await self._connection.execute(_LAST_CHANGE)).fetchone() or (0, 0)
        if (table, change) == self._seen:
            return
        # Another table, or a smaller number: the database was put back to what it was before, or is another.
        goes_on = self._seen is not None and table == self._seen[0] and change > self._seen[1]
        known = self._seen[1] if goes_on and self._seen is not None else -1
        rows = await (await self._connection.execute(_CHANGES, (known, self._mark))).fetchall()
        self._ring.learn({bytes(row[0]): _caller(*row[1:]) for row in rows}, afresh=not goes_on)
        self._seen = table, change

    def _hang_up(self) -> None:
        connection, self._connection, self._seen = self._connection, None, None
        if connection is not None:
            connection.pgconn.finish()


def _caller(
    key_id: str, scopes: list[str], requests: int | None, window_s: int | None, expires_at: Any, revoked_at: Any
) -> Caller:
    ends_at = math.inf if expires_at is None else expires_at.timestamp()
    # A later release may know other scopes.
    known = frozenset(scope for scope in Scope if scope in scopes)
    return Caller(key_id, known, ends_at if revoked_at is None else 0.0, rate_limit(requests, window_s))
