"""What makes events safe: which were processed, which still have to be sent, who may write."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters.schema import fences, outbox, processed_events
from app.domain.rows import RowScope
from app.errors import LockLost


class EventTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def claim(self, event_ids: Collection[str]) -> set[str]:
        """Note these as processed, with the transaction's other effects; those that were not before."""
        if not event_ids:
            return set()
        statement = (
            insert(processed_events)
            .values([{"event_id": event_id} for event_id in sorted(event_ids)])
            .on_conflict_do_nothing()
            .returning(processed_events.c.event_id)
        )
        return set(self._connection.execute(statement).scalars())

    def release(self, event_id: str) -> None:
        """It was not processed after all."""
        self._connection.execute(processed_events.delete().where(processed_events.c.event_id == event_id))

    def processed(self, event_id: str) -> bool:
        select = sa.select(sa.exists().where(processed_events.c.event_id == event_id))
        return bool(self._connection.execute(select).scalar_one())

    def note_scopes(self, event_id: str, scopes: Sequence[RowScope]) -> None:
        """Which rows a processed event concerned: a repeat has to cache them again, and cannot know them all."""
        noted = [scope._asdict() for scope in scopes]
        change = processed_events.update().where(processed_events.c.event_id == event_id)
        self._connection.execute(change.values(scopes=noted))

    def scopes(self, event_id: str) -> list[RowScope]:
        """The rows that a processed event concerned."""
        select = sa.select(processed_events.c.scopes).where(processed_events.c.event_id == event_id)
        noted = self._connection.execute(select).scalar_one_or_none() or []
        return [RowScope(**scope) for scope in noted]

    def put_outbox(self, event_id: str, event: bytes) -> None:
        """An event to be sent once this transaction has committed."""
        self._connection.execute(outbox.insert().values(event_id=event_id, event=event))

    def outbox(self, limit: int) -> Sequence[tuple[str, bytes]]:
        """The oldest unsent ones as (event id, event); no other transaction gets the same."""
        select = sa.select(outbox.c.event_id, outbox.c.event).order_by(outbox.c.created_at).limit(limit)
        return [(row.event_id, row.event) for row in self._connection.execute(select.with_for_update(skip_locked=True))]

    def drop_outbox(self, event_ids: Collection[str]) -> None:
        self._connection.execute(outbox.delete().where(outbox.c.event_id.in_(event_ids)))

    def check_fence(self, scope: str, token: int) -> None:
        """Let only the newest holder of a scope's lock write. Raises `LockLost` for an older token."""
        statement = insert(fences).values(scope=scope, token=token)
        newest = self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[fences.c.scope],
                set_={"token": statement.excluded.token},
                where=fences.c.token <= statement.excluded.token,
            ).returning(fences.c.token)
        ).scalar_one_or_none()
        if newest is None:
            raise LockLost(f"the lock on {scope} was taken over by a newer holder")
