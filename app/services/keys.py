"""Keys are made, rotated and revoked. Whoever gets one is shown it once; every change is a line in the log."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import structlog

from app.domain.api_key import ApiKey, KeyHash, NewKey, RateLimit, Scope, in_order, new_key
from app.errors import Conflict, InvalidInput, NotFound
from app.services.ports import Store, Transaction

FIRST_CONSUMER = "operator"
_PAGE = 1000

_logger = structlog.get_logger(__name__)


def create(store: Store, hash_: KeyHash, wanted: NewKey, by: str) -> tuple[str, ApiKey]:
    """A key, and what is known of it. `by` is who asks, for the log. Raises `InvalidInput`."""
    now = _now()
    _check_end(wanted.expires_at, now)
    with store.transaction() as tx:
        tx.keys.put_consumer(wanted.consumer_id, wanted.consumer_name)
        scopes = in_order(wanted.scopes)
        made = _put(tx, hash_, wanted.consumer_id, scopes, wanted.rate_limit, now, wanted.expires_at, None)
    _note("created", made[1], by)
    return made


def rotate(
    store: Store, hash_: KeyHash, key_id: str, overlap_s: int, expires_at: datetime | None, by: str
) -> tuple[str, ApiKey]:
    """Another key in the place of this one, which goes on for `overlap_s` and then expires. Without `expires_at` the
    new one lives as long as the old one was made for. Raises `NotFound`, `Conflict` where the old one is of no use any
    more, `InvalidInput`."""
    now = _now()
    _check_end(expires_at, now)
    with store.transaction() as tx:
        old = _held(tx, key_id)
        if not old.usable(now):
            raise Conflict(f"API key {key_id!r} is revoked or has expired: create another")
        if expires_at is None and old.expires_at is not None:
            expires_at = now + (old.expires_at - old.created_at)
        overlap_ends = now + timedelta(seconds=overlap_s)
        tx.keys.end(key_id, expires_at=min(overlap_ends, old.expires_at or overlap_ends))
        made = _put(tx, hash_, old.consumer_id, old.scopes, old.rate_limit, now, expires_at, key_id)
    _note("rotated", made[1], by, rotated_from=key_id, overlap_s=overlap_s)
    return made


def revoke(store: Store, key_id: str, by: str) -> ApiKey:
    """The key is of no use from now on; every process knows within two seconds. Again, it changes nothing. Raises
    `NotFound`."""
    with store.transaction() as tx:
        key = _held(tx, key_id)
        if key.revoked_at is not None:
            return key
        now = _now()
        tx.keys.end(key_id, revoked_at=now)
    revoked = key.model_copy(update={"revoked_at": now})
    _note("revoked", revoked, by)
    return revoked


def get(store: Store, key_id: str) -> ApiKey:
    """Raises `NotFound`."""
    with store.transaction() as tx:
        return _known(tx.keys.get(key_id), key_id)


def every_key(store: Store, consumer_id: str | None) -> Iterator[ApiKey]:
    """Of this consumer, or of all, in the order of their ids."""
    after = ""
    while True:
        with store.transaction() as tx:
            page = tx.keys.page(consumer_id, after, _PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].key_id


def first_key(store: Store, hash_: KeyHash) -> str | None:
    """An admin key where there is none that works, for whoever starts the service for the first time."""
    with store.transaction() as tx:
        tx.keys.hold()
        if tx.keys.has_admin(hash_.mark):
            return None
        tx.keys.put_consumer(FIRST_CONSUMER, None)
        return _put(tx, hash_, FIRST_CONSUMER, [Scope.ADMIN], None, _now(), None, None)[0]


def _put(
    tx: Transaction,
    hash_: KeyHash,
    consumer_id: str,
    scopes: list[Scope],
    rate_limit: RateLimit | None,
    created_at: datetime,
    expires_at: datetime | None,
    rotated_from: str | None,
) -> tuple[str, ApiKey]:
    key, key_id = new_key()
    made = ApiKey(
        key_id=key_id,
        consumer_id=consumer_id,
        scopes=scopes,
        rate_limit=rate_limit,
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=None,
        rotated_from=rotated_from,
    )
    tx.keys.put(made, hash_(key.encode()), hash_.mark)
    return key, made


def _held(tx: Transaction, key_id: str) -> ApiKey:
    tx.keys.hold()
    return _known(tx.keys.get(key_id), key_id)


def _known(key: ApiKey | None, key_id: str) -> ApiKey:
    if key is None:
        raise NotFound(f"there is no API key {key_id!r}")
    return key


def _check_end(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("lies in the past", "expires_at")


def _now() -> datetime:
    return datetime.now(UTC)


def _note(what: str, key: ApiKey, by: str, **more: str | int) -> None:
    _logger.info(
        f"API key {what}",
        key_id=key.key_id,
        consumer_id=key.consumer_id,
        scopes=[str(scope) for scope in key.scopes],
        expires_at=key.expires_at and key.expires_at.isoformat(),
        by=by,
        **more,
    )
