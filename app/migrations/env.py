"""Alembic's entry: runs the revisions against the engine's URL that `adapters.database.migrate` was given."""

from alembic import context

from app.adapters.database import make_engine
from app.adapters.schema import metadata

# Two processes that start together must not migrate at once; the number is arbitrary and ours.
_ADVISORY_LOCK = 7_204_311


def run() -> None:
    engine = make_engine(context.config.attributes["url"], pool_size=1)
    try:
        with engine.connect() as connection:
            context.configure(connection=connection, target_metadata=metadata, compare_type=True)
            with context.begin_transaction():
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
                context.run_migrations()
    finally:
        engine.dispose()


run()
