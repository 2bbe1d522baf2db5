"""PostgreSQL: the engine, migrations, whole columns in and out, and what its errors mean."""

import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg.abc import RV, PQGen
from psycopg.adapt import Dumper

from app import niceness
from app.domain.columns import Column, Table
from app.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import alembic.config

_MIGRATIONS = Path(__file__).parents[1] / "migrations"

# An array in PostgreSQL's binary format (array_send): three int4 (dimensions, whether there are nulls, the element's
# type), two for each dimension (length, lower bound), then per element an int4 length and the value.
_ARRAY_HEADER = np.dtype([(name, ">i4") for name in ("dimensions", "nulls", "element", "length", "lower")])
_TABLE_HEADER_BYTES = _ARRAY_HEADER.itemsize + 8
_ARRAY_ELEMENT = np.dtype([("length", ">i4"), ("value", ">i8")])


class _ColumnDumper(Dumper):
    """Makes an int64 numpy column a parameter of type int8[], with no Python object per value."""

    format = psycopg.pq.Format.BINARY
    oid = psycopg.adapters.types["int8"].array_oid

    def dump(self, column: Column) -> bytes:
        header = np.array([(1, 0, psycopg.adapters.types["int8"].oid, len(column), 1)], _ARRAY_HEADER)
        elements = np.empty(len(column), _ARRAY_ELEMENT)
        elements["length"], elements["value"] = 8, column
        return header.tobytes() + elements.tobytes()


psycopg.adapters.register_dumper(np.ndarray, _ColumnDumper)

NOW_MS = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8"
"""The time, in ms since 1970, by the server's clock."""


_LONGEST_CONNECT_S = 5

DOUBT_S = 10.0
"""After so long without a word from the server, whoever waits for one finds out whether it is at work."""

_ON_ITS_WAY_S = 1.0
"""What the server has said by then comes as soon as this, if it comes at all."""


def make_engine(
    url: str,
    pool_size: int = 5,
    answer_s: float | None = None,
    idle_s: float | None = None,
    doubt_s: float = DOUBT_S,
) -> sa.Engine:
    """An engine for postgresql://…; nothing is connected yet. With `answer_s`, whoever waits longer than that for the
    server's next word has an error, and after `doubt_s` already where the connection turns out to be half-open; without
    it, a statement may take as long as it takes. With `idle_s`, the server
    ends a transaction from which it has heard nothing for so long: its process hangs, and others wait for its rows."""
    patience_s = min(answer_s or _LONGEST_CONNECT_S, _LONGEST_CONNECT_S)
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=patience_s,
        connect_args={"connect_timeout": max(2, round(patience_s)), "application_name": "pricing"} | _KEEPALIVE,
    )

    @sa.event.listens_for(engine, "checkout")
    def replace_if_ended(connection: psycopg.Connection[Any], _record: Any, _proxy: Any) -> None:
        if connection.closed or _has_something_to_read(connection):
            raise sa.exc.InvalidatePoolError

    @sa.event.listens_for(engine, "before_cursor_execute")
    def wait_for_each(connection: sa.Connection, *_: Any) -> None:
        alone(connection)

    @sa.event.listens_for(engine, "connect")
    def give_way(connection: psycopg.Connection[Any], _record: Any) -> None:
        if connection.info.host.startswith(("/", "127.", "localhost", "::1")):
            niceness.extend_to_postgres(connection.info.backend_pid)

    if answer_s is not None:

        @sa.event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, arguments: Any, named: Any) -> _ImpatientConnection:
            connection = _ImpatientConnection.connect(*arguments, **named)
            connection.answer_s, connection.doubt_s = answer_s, doubt_s
            connection.another = partial(psycopg.Connection.connect, *arguments, **named | {"connect_timeout": 3})
            return connection

    if idle_s is not None:

        @sa.event.listens_for(engine, "connect")
        def limit_idleness(connection: psycopg.Connection[Any], _record: Any) -> None:
            connection.execute(f"SET idle_in_transaction_session_timeout = {int(idle_s * 1000)}")
            connection.commit()

    return engine


# A server whose machine is gone says nothing; without these, that is noticed after hours.
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


def _has_something_to_read(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has said something unasked: as a rule, that the connection is over. Finding that out costs no
    round trip, as asking would."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


_AT_WORK = """
    SELECT state = 'active' AND wait_event_type IS DISTINCT FROM 'Client' FROM pg_stat_activity WHERE pid = %s
"""


class _ImpatientConnection(psycopg.Connection[Any]):
    """Ends itself where the server says nothing for `answer_s`, or for `doubt_s` and is not at work: a server that
    hangs must not keep our threads. PostgreSQL's own time limits do not help there, for it is the server that keeps
    them."""

    answer_s: float | None = None
    doubt_s: float
    another: Callable[[], psycopg.Connection[Any]]

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        limit = self.answer_s if timeout is None else timeout
        if limit is None:
            return super().wait(gen, interval)
        began, is_served = time.monotonic(), True
        while True:
            asked = time.monotonic()
            patience = min(self.doubt_s if is_served else _ON_ITS_WAY_S, began + limit - asked)
            try:
                return super().wait(gen, interval, patience)
            except psycopg.OperationalError as error:
                now = time.monotonic()
                if now - asked < patience or self.closed:
                    raise
                if now - began < limit and is_served:
                    is_served = self._is_served()
                    continue
                self.pgconn.finish()
                raise psycopg.OperationalError(f"no answer within {now - began:.3g} s") from error

    def _is_served(self) -> bool:
        """Whether the server, asked over another connection, is at work for this one. If it waits for us to say or hear
        something, or does not answer there either, the connection is half-open."""
        try:
            with self.another() as other:
                state = other.execute(_AT_WORK, [self.info.backend_pid]).fetchone()
        except psycopg.Error:
            return False
        return state == (True,)


def migrate(url: str) -> None:
    """Bring the schema to the newest revision. Raises `Unavailable`, and `InvalidInput` for a wrong encoding."""
    import alembic.command  # slow to import, and no process that serves needs it

    engine = make_engine(url, pool_size=1)
    with unavailable_if_down(), engine.connect() as connection:
        encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
    engine.dispose()
    if encoding != "UTF8":
        raise InvalidInput(f"the database's encoding is {encoding}; create it with ENCODING 'UTF8'")
    with unavailable_if_down():
        alembic.command.upgrade(migration_config(url), "head")


def migration_config(url: str) -> "alembic.config.Config":
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = url
    return config


@contextmanager
def unavailable_if_down() -> Iterator[None]:
    """Turn lost connections, exhausted pools and servers that shut down or only read into `Unavailable`. Deadlocks and
    serialisation failures too: the work is retried as a whole, and nothing is away."""
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise Unavailable(f"PostgreSQL is not available: {error}", upstream="postgresql") from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        told = str(cause).partition("\n")[0]
        if isinstance(cause, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
            raise Unavailable(f"PostgreSQL has to be asked again: {told}") from error
        if isinstance(cause, _AWAY):
            raise Unavailable(f"PostgreSQL is not available: {told}", upstream="postgresql") from error
        raise


_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
)


def read_columns(connection: sa.Connection, select: str, parameters: Mapping[str, Any], dtype: np.dtype[Any]) -> Table:
    """The rows of a query whose columns are integers and never null, as one array of `dtype`, whose fields are int64.

    They come as one binary array, so there is no Python object per value, and not even one per row.
    """
    (table,), _ = read_together(connection, [(select, dtype)], (), parameters)
    return table


def read_lists(
    connection: sa.Connection, selects: Sequence[tuple[str, Sequence[str]]], parameters: Mapping[str, Any]
) -> list[list[list[Any]]]:
    """Of several queries, of any types, each column as one list: less work than a tuple per row. Each query comes with
    the names of its columns."""
    return read_together(connection, (), selects, parameters)[1]


def read_together(
    connection: sa.Connection,
    tables: Iterable[tuple[str, np.dtype[Any]]],
    lists: Iterable[tuple[str, Sequence[str]]],
    parameters: Mapping[str, Any],
    common: str = "",
) -> tuple[list[Table], list[list[list[Any]]]]:
    """Several queries as one statement, some as `read_columns` has them and some as `read_lists` does: for a small one,
    to be a statement is most of its cost. `common` is what goes before them all, a WITH."""
    dtypes, counts = [dtype for _, dtype in tables], [len(names) for _, names in lists]
    statement = _in_one(
        common,
        tuple((query, len(dtype.names or ())) for query, dtype in tables),
        tuple((query, tuple(names)) for query, names in lists),
    )
    row = iter(run(connection, statement, parameters).fetchone() or ())
    found = [_table(array, dtype) for array, dtype in zip(islice(row, len(dtypes)), dtypes, strict=True)]
    return found, [[column or [] for column in islice(row, count)] for count in counts]


@lru_cache
def _in_one(common: str, tables: tuple[tuple[str, int], ...], lists: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    """Short, for psycopg remembers what it has found in a statement only where that has 4,096 characters at most."""
    parts = []
    for query, count in tables:
        columns = ",".join(ascii_lowercase[:count])
        parts.append(f"(SELECT array_send(array_agg(ARRAY[{columns}]::int8[])) FROM ({query}) rows ({columns}))")
    for query, names in lists:
        columns = ",".join(f"array_agg({name})" for name in names)
        parts.append(f"(SELECT {columns} FROM ({query}) rows)")
    statement = f"{common} SELECT * FROM {','.join(f'{part} of_{nth}' for nth, part in enumerate(parts))}"
    return " ".join(statement.split())


def _table(array: bytes | None, dtype: np.dtype[Any]) -> Table:
    if array is None:
        return np.empty(0, dtype)
    values = np.frombuffer(array, _ARRAY_ELEMENT, offset=_TABLE_HEADER_BYTES)["value"]
    return values.astype(np.int64).view(dtype)


class _Transaction:
    """One of a connection that else commits by itself. Its BEGIN goes along with what is `run` first, its COMMIT with
    what is last: all is one pipeline, in which only whoever reads an answer waits, until something has to be `alone`.
    They are statements one after the other all the same: each sees what was committed until it begins."""

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._driver = driver
        self._pipeline = ExitStack()
        self._begun = False

    def piped(self) -> psycopg.Connection[Any]:
        if self._driver.pgconn.pipeline_status == psycopg.pq.PipelineStatus.OFF:
            self._pipeline.enter_context(self._driver.pipeline())
        return self._in_it()

    def alone(self) -> psycopg.Connection[Any]:
        self._pipeline.close()
        return self._in_it()

    def commit(self) -> None:
        if self._begun:
            self._driver.execute("COMMIT")
        self._pipeline.close()

    def undo(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            self._driver.close()  # this process is to end, and would have to wait for what it has asked last
        with suppress(psycopg.Error):
            self._pipeline.close()
        with suppress(psycopg.Error):
            self._driver.rollback()

    def _in_it(self) -> psycopg.Connection[Any]:
        if not self._begun:
            self._begun = True
            self._driver.execute("BEGIN")
        return self._driver


_transactions: WeakKeyDictionary[sa.Connection, _Transaction] = WeakKeyDictionary()
"""Of connections that are in one. SQLAlchemy's would go on with another one of the driver's where that is lost; but its
transaction is over then, and nothing more may be done in its name."""


@contextmanager
def transaction(connection: sa.Connection) -> Iterator[None]:
    """A transaction of a connection that else commits by itself (AUTOCOMMIT)."""
    open_ = _transactions[connection] = _Transaction(_driver(connection))
    try:
        yield
        open_.commit()
    except BaseException as error:
        open_.undo(error)
        raise
    finally:
        del _transactions[connection]


def run(connection: sa.Connection, statement: str, parameters: Mapping[str, Any]) -> psycopg.Cursor[Any]:
    """Execute a statement, past SQLAlchemy, which takes as long for a small one as PostgreSQL does. In a `transaction`
    an answer is waited for only when it is read; and an error may come as late as that, or with the COMMIT."""
    open_ = _transactions.get(connection)
    driver = _driver(connection) if open_ is None else open_.piped()
    return driver.execute(statement, parameters, binary=True)


def alone(connection: sa.Connection) -> psycopg.Connection[Any]:
    """The driver's connection, for what cannot be in a pipeline: whoever reads each answer at once, and COPY."""
    open_ = _transactions.get(connection)
    return _driver(connection) if open_ is None else open_.alone()


def write_columns(connection: sa.Connection, table: str, fixed: Table, varying: Mapping[str, Sequence[bytes]]) -> None:
    """COPY columns into a table. The fields of `fixed` are in PostgreSQL's own binary formats, `varying` are columns of
    bytes or of text as UTF-8; none is null."""
    names = [*(fixed.dtype.names or ()), *varying]
    head = np.empty(len(fixed), _copied([fixed.dtype[name] for name in fixed.dtype.names or ()]))
    head["fields"] = len(names)
    for nth, name in enumerate(fixed.dtype.names or ()):
        head[f"length {nth}"], head[f"value {nth}"] = fixed.dtype[name].itemsize, fixed[name]
    pieces: list[Iterable[bytes]] = [_cut(head)]
    for values in varying.values():
        pieces += [_cut(np.array(list(map(len, values)), ">i4")), values]
    rows = chain.from_iterable(zip(*pieces, strict=True))
    with alone(connection).cursor().copy(f"COPY {table} ({', '.join(names)}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(b"".join([_COPY_HEADER, *rows, _COPY_END]))


# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS: signature, flags, length of extensions.
# A row is its number of fields (int2), then per field its length (int4) and its value.
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"


def _copied(types: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    fields = [((f"length {nth}", ">i4"), (f"value {nth}", type_)) for nth, type_ in enumerate(types)]
    return np.dtype([("fields", ">i2"), *chain.from_iterable(fields)])


def _cut(records: np.ndarray[Any, Any]) -> list[bytes]:
    """Each record's own bytes."""
    size, data = records.dtype.itemsize, records.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def copy_in(connection: sa.Connection, table: str, columns: Sequence[str], rows: Iterable[bytes]) -> None:
    """COPY rows that are in PostgreSQL's binary format already, a block at a time."""
    with alone(connection).cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(_COPY_HEADER)
        for block in rows:
            copy.write(block)
        copy.write(_COPY_END)


def write_rows(connection: sa.Connection, table: str, types: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """COPY rows into a table; `types` names its columns and their PostgreSQL types, in order."""
    copy_in = f"COPY {table} ({', '.join(types)}) FROM STDIN (FORMAT BINARY)"
    with alone(connection).cursor().copy(copy_in) as copy:
        copy.set_types(list(types.values()))
        for row in rows:
            copy.write_row(row)


def _driver(connection: sa.Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
