"""Consumers and API keys. Every change of a key takes the next number of `key_changes`, whose row it holds until it
commits: so numbers are committed in order, and whoever has seen one has seen all before it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters.schema import api_keys, consumers, key_changes
from app.domain.api_key import ApiKey, Consumer, RateLimit, Scope

_USABLE = api_keys.c.revoked_at.is_(None) & (api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > sa.func.now()))


class KeyTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def hold(self) -> None:
        """Nobody else changes a key until this transaction ends."""
        self._connection.execute(sa.select(key_changes.c.change).with_for_update())

    def put(self, key: ApiKey, hash_: bytes, mark: bytes) -> None:
        """A new key of a consumer who is there. `hash_` and `mark` are what `KeyHash` makes of the key."""
        limit = key.rate_limit
        row = {
            "key_id": key.key_id,
            "consumer_id": key.consumer_id,
            "hash": hash_,
            "mark": mark,
            "scopes": list(key.scopes),
            "limit_requests": limit and limit.requests,
            "limit_window_s": limit and limit.window_s,
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "rotated_from": key.rotated_from,
            "change": self._next_change(),
        }
        self._connection.execute(api_keys.insert().values(row))

    def end(self, key_id: str, *, expires_at: datetime | None = None, revoked_at: datetime | None = None) -> None:
        """Note that it expires or is revoked then."""
        ended = {"expires_at": expires_at} if revoked_at is None else {"revoked_at": revoked_at}
        change = api_keys.update().where(api_keys.c.key_id == key_id)
        self._connection.execute(change.values(ended | {"change": self._next_change()}))

    def get(self, key_id: str) -> ApiKey | None:
        row = self._connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id)).one_or_none()
        return None if row is None else _key(row)

    def page(self, consumer_id: str | None, after: str, limit: int) -> list[ApiKey]:
        """Keys, of this consumer or of all, in the order of their ids."""
        select = sa.select(api_keys).where(api_keys.c.key_id > after).order_by(api_keys.c.key_id).limit(limit)
        if consumer_id is not None:
            select = select.where(api_keys.c.consumer_id == consumer_id)
        return [_key(row) for row in self._connection.execute(select)]

    def has_admin(self, mark: bytes) -> bool:
        """Whether there is a usable admin key that was hashed with the secret of this mark."""
        mine = _USABLE & (api_keys.c.mark == mark) & api_keys.c.scopes.contains([Scope.ADMIN.value])
        return bool(self._connection.execute(sa.select(sa.exists().where(mine))).scalar_one())

    def put_consumer(self, consumer_id: str, name: str | None) -> None:
        """Make it known, unless it is; a name is changed where one is given."""
        row = insert(consumers).values(consumer_id=consumer_id, name=name or consumer_id)
        on_conflict = (
            row.on_conflict_do_nothing()
            if name is None
            else row.on_conflict_do_update(index_elements=["consumer_id"], set_={"name": name})
        )
        self._connection.execute(on_conflict)

    def consumers(self, after: str, limit: int) -> list[Consumer]:
        count = sa.select(sa.func.count()).where(_USABLE, api_keys.c.consumer_id == consumers.c.consumer_id)
        select = (
            sa.select(consumers, count.scalar_subquery().label("keys"))
            .where(consumers.c.consumer_id > after)
            .order_by(consumers.c.consumer_id)
            .limit(limit)
        )
        return [Consumer.model_validate(row._asdict()) for row in self._connection.execute(select)]

    def _next_change(self) -> int:
        count = key_changes.update().values(change=key_changes.c.change + 1).returning(key_changes.c.change)
        return int(self._connection.execute(count).scalar_one())


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        consumer_id=row.consumer_id,
        scopes=_scopes(row.scopes),
        rate_limit=rate_limit(row.limit_requests, row.limit_window_s),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        rotated_from=row.rotated_from,
    )


def rate_limit(requests: int | None, window_s: int | None) -> RateLimit | None:
    """The two columns of a limit as one value."""
    return None if requests is None or window_s is None else RateLimit(requests=requests, window_s=window_s)


def _scopes(stored: Sequence[str]) -> list[Scope]:
    return [Scope(scope) for scope in stored]
