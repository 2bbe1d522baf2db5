"""Who calls: every key at hand in each API process, so that a known one costs no I/O.

A key is looked up by its keyed hash, in a dict. How long that takes may tell something of the hashes, which nobody can
choose without the service's secret; no text of a key is ever compared.
"""

import time
from collections.abc import Awaitable, Callable, Mapping

from app.domain.api_key import ANONYMOUS, KEY_LENGTH, Caller, KeyHash, Scope
from app.errors import PricingError, Unauthenticated, Unavailable

MOST_REFUSED = 10_000


class KeyRing:
    """The keys that a process knows, by their hashes, and the hashes that are no key's."""

    def __init__(self, hash_: KeyHash) -> None:
        self._hash = hash_
        self._callers: dict[bytes, Caller] = {}
        self._refused: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, key: bytes) -> Caller | None:
        return self._callers.get(self._hash(key))

    def learn(self, callers: Mapping[bytes, Caller], *, afresh: bool) -> None:
        """Take over what has changed, or all there is."""
        if afresh:
            self._callers.clear()
        self._callers.update(callers)
        self._refused.clear()

    def refuse(self, key: bytes) -> None:
        """It is no key of this service; that is remembered until a key is made or changed."""
        if len(self._refused) >= MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[self._hash(key)] = None

    def refuses(self, key: bytes) -> bool:
        return self._hash(key) in self._refused


class Callers:
    """`catch_up` brings the ring to where all is known that was committed before it was called, however many call it
    at once, and raises `Unavailable` where that cannot be found out. Reading is everybody's where it is open."""

    def __init__(self, ring: KeyRing, catch_up: Callable[[], Awaitable[None]], *, open_reading: bool) -> None:
        self._ring, self._catch_up, self._open_reading = ring, catch_up, open_reading

    def may(self, caller: Caller, scope: Scope) -> bool:
        return (scope is Scope.READ and self._open_reading) or caller.may(scope)

    def at_once(self, key: bytes | None) -> Caller | None:
        """Who calls with this key, or with none; None where it is not at hand, or is no good."""
        if key is None:
            return ANONYMOUS
        caller = self._ring.find(key)
        return caller if caller is not None and caller.ends_at > time.time() else None

    def reader(self, found: Caller | PricingError) -> Caller | PricingError:
        """Who is to be taken for the one who reads: while nobody can tell whose key it is, reading that is open goes
        on, as it does without a key."""
        return ANONYMOUS if isinstance(found, Unavailable) and self._open_reading else found

    async def identify(self, key: bytes) -> Caller:
        """The same, asked of the database where the key is not known here. Raises `Unauthenticated`, `Unavailable`."""
        if len(key) != KEY_LENGTH:
            raise Unauthenticated("X-API-Key holds no API key: one is pk_, 12 letters and digits, _ and 43 more.")
        caller = self._ring.find(key)
        if caller is None and not self._ring.refuses(key):
            await self._catch_up()
            caller = self._ring.find(key)
            if caller is None:
                self._ring.refuse(key)
        if caller is None:
            raise Unauthenticated("This service has no such API key.")
        if caller.ends_at <= time.time():
            ended = "has expired" if caller.ends_at else "was revoked"
            raise Unauthenticated(f"The API key {caller.key_id} {ended}.", caller.key_id)
        return caller
