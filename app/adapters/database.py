"""PostgreSQL: the engine, migrations, whole columns in and out, and what its errors mean."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import numpy as np
import psycopg
import sqlalchemy as sa

from app.domain.columns import Table
from app.errors import Unavailable

_MIGRATIONS = Path(__file__).parents[1] / "migrations"

# COPY's binary format (PostgreSQL manual, "COPY", File Formats): an 11-byte signature, two int32, then per
# row an int16 count of fields and per field an int32 length and the value; at last an int16 of -1.
_COPY_HEADER, _COPY_TRAILER = 19, 2


def make_engine(url: str, pool_size: int = 5) -> sa.Engine:
    """An engine for postgresql://…; nothing is connected yet. Waits at most 5 s for a connection."""
    return sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "application_name": "pricing"},
    )


def migrate(url: str) -> None:
    """Bring the schema to the newest revision."""
    with unavailable_if_down():
        alembic.command.upgrade(migration_config(url), "head")


def migration_config(url: str) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["url"] = url
    return config


@contextmanager
def unavailable_if_down() -> Iterator[None]:
    """Turn lost connections, exhausted pools and servers that shut down into `Unavailable`. Deadlocks and
    serialisation failures too: the work is retried as a whole."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise Unavailable(f"PostgreSQL is not available: {_first_line(error)}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable(f"PostgreSQL is not available: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def read_columns(connection: sa.Connection, select: str, parameters: Mapping[str, Any], dtype: np.dtype[Any]) -> Table:
    """The rows of a query whose columns are all int8 and never null, as one array of `dtype`.

    Fixed widths let numpy read the whole answer at once, with no Python object per value.
    """
    with _cursor(connection).copy(f"COPY ({select}) TO STDOUT (FORMAT BINARY)", parameters) as copy:
        answer = b"".join(copy)
    fields = [part for name in dtype.names or () for part in ((f"{name} length", ">i4"), (name, ">i8"))]
    wire = np.dtype([("fields", ">i2"), *fields])
    rows = np.frombuffer(memoryview(answer)[_COPY_HEADER : len(answer) - _COPY_TRAILER], wire)
    table = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        table[name] = rows[name]
    return table


def write_rows(connection: sa.Connection, table: str, types: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
    """COPY rows into a table; `types` names its columns and their PostgreSQL types, in order."""
    copy_in = f"COPY {table} ({', '.join(types)}) FROM STDIN (FORMAT BINARY)"
    with _cursor(connection).copy(copy_in) as copy:
        copy.set_types(list(types.values()))
        for row in rows:
            copy.write_row(row)


def _cursor(connection: sa.Connection) -> psycopg.Cursor[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.cursor()
