"""The quick way: prices that this process or the shared cache has at hand, answered without routing or models.

It accepts exactly what `PriceRequest` and `BatchRequest` accept in strict JSON types, and leaves everything else,
wrong or merely unusual, to the endpoints, which decide and explain. A test holds the two equal.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from app.api.answers import encode
from app.bootstrap import now_ms
from app.domain.columns import Segment
from app.domain.quote import MAX_ITEMS, MAX_QUANTITY, quote
from app.domain.rules import ID_PATTERN
from app.services.near_cache import NearCache
from app.services.slots import Name

JSON = (b"content-type", b"application/json")
"""The header that a quick request has; every other way to say that a body is JSON is the endpoint's to judge."""


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    product_id: str  # whatever is not an id is not in the near cache either
    user_location: str
    is_prime_member: bool = False
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)] = 1


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    items: Annotated[list[_Request], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


_is_id = re.compile(ID_PATTERN).fullmatch

decode_request = msgspec.json.Decoder(_Request).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode


class QuickAnswer(NamedTuple):
    """A whole answer, how many quotes are in it, and of how many the price was brought from the shared cache."""

    body: bytes
    quotes: int
    brought: int = 0


class QuickWay:
    """By path, what can be answered from the near cache. `bring` puts there what the shared cache has."""

    def __init__(self, near: NearCache, bring: Callable[[Sequence[Name]], Awaitable[None]]) -> None:
        self._near, self._bring = near, bring
        self._ways: dict[str, Callable[[bytes], QuickAnswer | None]] = {
            "/api/v1/price": self._price,
            "/api/v1/prices/batch": self._batch,
        }
        self.paths = frozenset(self._ways)
        """What it serves."""

    def answer(self, path: str, body: bytes) -> QuickAnswer | None:
        """The answer to a POST of this body, or None where the endpoint has to look."""
        if not self._near.trusted:
            return None
        try:
            return self._ways[path](body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    async def fetch(self, path: str, body: bytes) -> QuickAnswer | None:
        """The same, with what the shared cache has brought here first."""
        try:
            requests = _decode_batch(body).items if path.endswith("/batch") else [decode_request(body)]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        now = now_ms()
        names = Counter((request.product_id, request.user_location) for request in requests)
        missing = [name for name in names if self._near.fresh(name, now) is None]
        if not missing or not all(_is_id(part) for name in missing for part in name):
            return None
        await self._bring(missing)
        answer = self.answer(path, body)
        return None if answer is None else answer._replace(brought=sum(names[name] for name in missing))

    def _price(self, body: bytes) -> QuickAnswer | None:
        answer = self._quote(decode_request(body), now_ms())
        return None if answer is None else QuickAnswer(answer, 1)

    def _batch(self, body: bytes) -> QuickAnswer | None:
        """All items or none: one that is not at hand sends the batch to the endpoint."""
        now = now_ms()
        answers = []
        for request in _decode_batch(body).items:
            answer = self._quote(request, now)
            if answer is None:
                return None
            answers.append(answer)
        items = b',"problem":null},{"status":200,"quote":'.join(answers)
        return QuickAnswer(b'{"items":[{"status":200,"quote":%b,"problem":null}]}' % items, len(answers))

    def _quote(self, request: _Request, now: int) -> bytes | None:
        # As `place` has it; where a part is no id, there is nothing at such a place.
        sheet = self._near.at_hand(f"{request.user_location}/{request.product_id}", now)
        if sheet is None:
            return None
        segment = Segment.MEMBER if request.is_prime_member else Segment.EVERYONE
        return encode(quote(sheet, segment, request.quantity, "cache"))
