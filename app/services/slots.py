"""One cached row: a price sheet as bytes, or the knowledge that there is none, and how fresh it is."""

from typing import NamedTuple, Protocol

import msgspec

Name = tuple[str, str]
"""A product's id and a location."""


def place(name: Name) -> str:
    """A row's place in the caches, as location/product. No id has a slash, so no two rows share one."""
    return f"{name[1]}/{name[0]}"


UNKNOWN = -1
"""The version of a row that is known not to exist: below every real one, so any real one replaces it."""


class Slot(msgspec.Struct, frozen=True, gc=False):
    """`payload` is the `PriceSheet` of this version as JSON, or, at version `UNKNOWN`, the reason why there is none.

    `checked_at` (ms) is when the database last said so. From `fresh_until` (ms) on the slot may be served only
    where nothing newer can be had.
    """

    version: int
    checked_at: int
    fresh_until: int
    payload: bytes

    @property
    def unknown(self) -> bool:
        return self.version == UNKNOWN


class Leased(NamedTuple):
    """The answer to a request for a lease: what the slot holds, and whether the lease was granted."""

    slot: Slot | None
    granted: bool


class SlotCache(Protocol):
    """The shared cache. Every method raises `Unavailable` where it is away."""

    async def get(self, names: list[Name]) -> list[Slot | None]: ...

    async def lease(self, names: list[Name], token: str, now: int, lease_ms: int, *, early: bool) -> list[Leased]:
        """Ask for the right to fill these slots, from `now` (ms) for `lease_ms`; `early` also where they are fresh."""
        ...

    async def fill(self, slots: dict[Name, Slot], token: str) -> None:
        """Fill slots whose lease is still `token`'s. A writer's update has removed the lease meanwhile."""
        ...
