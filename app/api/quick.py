"""The quick way: prices that are to be had at once or soon, answered without routing or models.

It accepts exactly what `PriceRequest` and `BatchRequest` accept in strict JSON types, and leaves everything else,
wrong or merely unusual, to the endpoints, which decide and explain. A test holds the two equal.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated, NamedTuple

import msgspec

from app.api.answers import encode
from app.bootstrap import now_ms
from app.domain.columns import EVERYONE, MEMBER
from app.domain.quote import MAX_ITEMS, MAX_QUANTITY, Quote, Source, quote
from app.domain.rules import ID_PATTERN
from app.services.near_cache import NearCache
from app.services.slots import Name

JSON = (b"content-type", b"application/json")
"""The header that a quick request has; every other way to say that a body is JSON is the endpoint's to judge."""


class Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One question, as `PriceRequest` has it."""

    product_id: str  # whatever is not an id is not in the near cache either
    user_location: str
    is_prime_member: bool = False
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)] = 1


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    items: Annotated[list[Request], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class _Item(msgspec.Struct, gc=False):
    status: int
    quote: Quote
    problem: None


class _Items(msgspec.Struct, gc=False):
    items: list[_Item]


_is_id = re.compile(ID_PATTERN).fullmatch

decode_request = msgspec.json.Decoder(Request).decode
decode_batch = msgspec.json.Decoder(_Batch).decode


class QuickAnswer(NamedTuple):
    """A whole answer, how many quotes are in it, and of how many the price was brought from the shared cache, and from
    the database."""

    body: bytes
    quotes: int
    brought: int = 0
    loaded: int = 0


class QuickWay:
    """By path, what can be answered from the near cache. `bring` puts there what is soon to be had, and says what of it
    came from the database."""

    def __init__(self, near: NearCache, bring: Callable[[Sequence[Name]], Awaitable[Collection[Name]]]) -> None:
        self._near, self._bring = near, bring
        self._ways: dict[str, Callable[[bytes, Collection[Name]], QuickAnswer | None]] = {
            "/api/v1/price": self._price,
            "/api/v1/prices/batch": self._batch,
        }
        self.paths = frozenset(self._ways)
        """What it serves."""

    def answer(self, path: str, body: bytes, loaded: Collection[Name] = ()) -> QuickAnswer | None:
        """The answer to a POST of this body, or None where the endpoint has to look; `loaded` are the rows that were
        just brought from the database."""
        if not self._near.trusted:
            return None
        try:
            return self._ways[path](body, loaded)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    async def fetch(self, path: str, body: bytes) -> QuickAnswer | None:
        """The same, with what is not at hand brought here first."""
        try:
            requests = decode_batch(body).items if path.endswith("/batch") else [decode_request(body)]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        now = now_ms()
        names = Counter((request.product_id, request.user_location) for request in requests)
        missing = [name for name in names if self._near.fresh(name, now) is None]
        if not missing or not all(_is_id(part) for name in missing for part in name):
            return None
        loaded = await self._bring(missing)
        answer = self.answer(path, body, loaded)
        if answer is None:
            return None
        from_database = sum(names[name] for name in loaded)
        return answer._replace(brought=sum(names[name] for name in missing) - from_database, loaded=from_database)

    def _price(self, body: bytes, loaded: Collection[Name]) -> QuickAnswer | None:
        found = self._quotes([decode_request(body)], loaded)
        return None if found is None else QuickAnswer(encode(found[0]), 1)

    def _batch(self, body: bytes, loaded: Collection[Name]) -> QuickAnswer | None:
        found = self._quotes(decode_batch(body).items, loaded)
        if found is None:
            return None
        return QuickAnswer(encode(_Items([_Item(200, made, None) for made in found])), len(found))

    def _quotes(self, requests: Sequence[Request], loaded: Collection[Name]) -> list[Quote] | None:
        """All of them, or None where one is not at hand: the endpoint has to look."""
        now, at_hand = now_ms(), self._near.at_hand
        quotes = []
        for request in requests:
            product_id, location = request.product_id, request.user_location
            segment = MEMBER if request.is_prime_member else EVERYONE
            # As `place` has it; where a part is no id, there is nothing at such a place.
            sheet = at_hand(f"{location}/{product_id}", segment, now)
            if sheet is None:
                return None
            source: Source = "database" if loaded and (product_id, location) in loaded else "cache"
            quotes.append(quote(product_id, location, sheet, segment, request.quantity, source))
        return quotes
