"""What makes events safe: which were processed, which still have to be sent, who may write."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from app.adapters.database import run
from app.adapters.schema import outbox, processed_events
from app.domain.rows import RowScope
from app.errors import LockLost


class EventTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def ask_claim(self, event_ids: Collection[str]) -> Callable[[], set[str]]:
        """Note these events as processed, with the transaction's other effects. Call what it gives for those that were
        not before, when that is needed."""
        new = run(
            self._connection,
            "INSERT INTO processed_events (event_id, scopes) SELECT event_id, '[]'"
            " FROM unnest(%(ids)s::text[]) event_id ON CONFLICT DO NOTHING RETURNING event_id",
            # In one order, so that two transactions that claim the same wait instead of deadlocking.
            {"ids": sorted(event_ids)},
        )
        return lambda: {event_id for (event_id,) in new}

    def release(self, event_id: str) -> None:
        """It was not processed after all."""
        self._connection.execute(processed_events.delete().where(processed_events.c.event_id == event_id))

    def processed(self, event_id: str) -> bool:
        select = sa.select(sa.exists().where(processed_events.c.event_id == event_id))
        return bool(self._connection.execute(select).scalar_one())

    def processed_at(self, event_id: str) -> datetime | None:
        select = sa.select(processed_events.c.processed_at).where(processed_events.c.event_id == event_id)
        found: datetime | None = self._connection.execute(select).scalar_one_or_none()
        return found

    def note_scopes(self, event_id: str, scopes: Sequence[RowScope]) -> None:
        """Which rows a claimed event concerned, where the event itself does not say: a repeat has to cache them
        again."""
        change = processed_events.update().where(processed_events.c.event_id == event_id)
        self._connection.execute(change.values(scopes=[scope._asdict() for scope in scopes]))

    def scopes(self, event_ids: Sequence[str]) -> dict[str, list[RowScope]]:
        """The rows that processed events concerned, where it was noted."""
        select = sa.select(processed_events.c.event_id, processed_events.c.scopes)
        rows = self._connection.execute(select.where(processed_events.c.event_id.in_(event_ids)))
        return {event_id: [RowScope(**scope) for scope in noted] for event_id, noted in rows}

    def forget(self, older_than_s: float, limit: int) -> int:
        """Delete at most `limit` ids of events that were processed longer ago than that; how many."""
        old = processed_events.c.processed_at < sa.func.now() - timedelta(seconds=older_than_s)
        chosen = sa.select(processed_events.c.event_id).where(old).order_by(processed_events.c.processed_at)
        chosen = chosen.limit(limit).with_for_update(skip_locked=True)
        forgotten = processed_events.delete().where(processed_events.c.event_id.in_(chosen))
        return self._connection.execute(forgotten).rowcount

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
        self.ask_fence(scope, token)()

    def ask_fence(self, scope: str, token: int, *, few: bool = False) -> Callable[[], None]:
        """As `check_fence`, which it is once what it gives is called. Where what follows in this transaction is about
        `few` rows, its statements need no plan of their own, to make which takes PostgreSQL as long as to carry one
        out."""
        newest = run(
            self._connection,
            "INSERT INTO fences AS f (scope, token) VALUES (%(scope)s, %(token)s) ON CONFLICT (scope)"
            " DO UPDATE SET token = excluded.token WHERE f.token <= excluded.token"
            " RETURNING CASE WHEN %(few)s THEN set_config('plan_cache_mode', 'force_generic_plan', true) ELSE '' END",
            {"scope": scope, "token": token, "few": few},
        )

        def checked() -> None:
            if newest.fetchone() is None:
                raise LockLost(f"the lock on {scope} was taken over by a newer holder")

        return checked
