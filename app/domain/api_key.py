"""API keys: what a consumer shows to say who it is, what it may do with it, and what is kept of it.

A key is `pk_<id>_<secret>`. Its id is public: it recognises the key in lists, bills and logs. The secret has 256 bits
and is shown once; what is kept is a hash of the whole, made with a secret of the service, so that neither a copy of the
database nor of the service's secret alone is good for anything.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from app.domain.rules import Id, Name

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH, _SECRET_LENGTH = 12, 43
HEADER = "X-API-Key"
KEY_LENGTH = len("pk_") + _ID_LENGTH + len("_") + _SECRET_LENGTH

KeyId = Annotated[str, StringConstraints(pattern=f"^[A-Za-z0-9]{{{_ID_LENGTH}}}$")]

MOST_REQUESTS, LONGEST_WINDOW_S = 100_000_000, 86_400
"""Of a rate limit. Their product in ms is less than 2 ** 53: Redis' scripts count in doubles."""

LONGEST_OVERLAP_S = 90 * 86_400
"""Of a key that was rotated, and the one that takes its place."""


class Scope(StrEnum):
    """What a key is good for. Admin includes the others; publish does not include read."""

    READ = "read"
    PUBLISH = "publish"
    ADMIN = "admin"


class RateLimit(BaseModel):
    """A token bucket: it holds `requests`, and as many flow in, evenly, in `window_s`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int = Field(ge=1, le=MOST_REQUESTS)
    window_s: int = Field(60, ge=1, le=LONGEST_WINDOW_S, description="In seconds.")

    @property
    def per_ms(self) -> float:
        return self.requests / (self.window_s * 1000)


class Consumer(BaseModel):
    """Who has keys: an application, a shop, a partner."""

    model_config = ConfigDict(frozen=True)

    consumer_id: Id
    name: Name
    created_at: datetime
    keys: int = Field(description="Keys that are neither revoked nor expired.")


class ApiKey(BaseModel):
    """All that is known of a key; the key itself is not."""

    model_config = ConfigDict(frozen=True)

    key_id: KeyId
    consumer_id: Id
    scopes: list[Scope]
    rate_limit: RateLimit | None = Field(description="Null: none.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_from: KeyId | None = Field(description="The key that this one replaces.")

    def usable(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Caller(msgspec.Struct, frozen=True, gc=False):
    """What a process has at hand of a key, to judge a request by. Of nobody in particular it is `ANONYMOUS`."""

    key_id: str
    scopes: frozenset[Scope]
    ends_at: float
    """When it expires, or 0 where it is revoked: seconds since 1970."""
    rate_limit: RateLimit | None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANONYMOUS = Caller("", frozenset(), float("inf"), None)


def new_key() -> tuple[str, str]:
    """A key that nobody can guess, and the id in it."""
    key_id, secret = (
        "".join(secrets.choice(_ALPHABET) for _ in range(length)) for length in (_ID_LENGTH, _SECRET_LENGTH)
    )
    return f"pk_{key_id}_{secret}", key_id


def in_order(scopes: Iterable[Scope]) -> list[Scope]:
    """Each once, in the order of what they allow."""
    given = set(scopes)
    return [scope for scope in Scope if scope in given]


_WRITTEN = re.compile(rf"pk_([A-Za-z0-9]{{{_ID_LENGTH}}})_[A-Za-z0-9]{{{_SECRET_LENGTH}}}")


def redacted(text: str) -> str:
    """What came from outside, without the secrets of keys that somebody put where none belongs."""
    return _WRITTEN.sub(r"pk_\1_[redacted]", text)


class KeyHash:
    """BLAKE2b (RFC 7693), keyed with the service's secret, whatever length that has."""

    def __init__(self, secret: str) -> None:
        key = hashlib.blake2b(secret.encode(), person=b"pricing api keys").digest()
        self._empty = hashlib.blake2b(key=key, digest_size=32)
        self.mark = self(b"")[:8]
        """What tells keys of this secret from those of another."""

    def __call__(self, key: bytes) -> bytes:
        """32 bytes. Takes as long for any key of the same length."""
        hashed = self._empty.copy()
        hashed.update(key)
        return hashed.digest()


class NewKey(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consumer_id: Id = Field(description="Who gets it; made known with its first key.")
    consumer_name: Name | None = Field(None, description="For people. Left out: as it was, or the id.")
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    expires_at: AwareDatetime | None = Field(None, description="Left out: never.")
    rate_limit: RateLimit | None = Field(None, description="Left out: none.")
