"""The quick way: prices that this process has at hand, answered without routing, validation models or I/O.

It accepts exactly what `PriceRequest` and `BatchRequest` accept in strict JSON types, and leaves everything else,
wrong or merely unusual, to the endpoints, which decide and explain. A test holds the two equal.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec

from app.api.answers import encode
from app.bootstrap import now_ms
from app.domain.columns import Segment
from app.domain.quote import MAX_QUANTITY, quote
from app.domain.sheet import decode_sheet
from app.services.near_cache import NearCache

JSON = (b"content-type", b"application/json")
"""The header that a quick request has; every other way to say that a body is JSON is the endpoint's to judge."""

MAX_ITEMS = 1000


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    product_id: str  # whatever is not an id is not in the near cache either
    user_location: str
    is_prime_member: bool = False
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)] = 1


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    items: Annotated[list[_Request], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode


class QuickAnswer(NamedTuple):
    """A whole answer, and how many quotes are in it."""

    body: bytes
    quotes: int


class QuickWay:
    """By path, what can be answered from the near cache."""

    def __init__(self, near: NearCache) -> None:
        self._near = near
        self._ways: dict[str, Callable[[bytes], QuickAnswer | None]] = {
            "/api/v1/price": self._price,
            "/api/v1/prices/batch": self._batch,
        }

    def serves(self, path: str) -> bool:
        return path in self._ways

    def answer(self, path: str, body: bytes) -> QuickAnswer | None:
        """The answer to a POST of this body, or None where the endpoint has to look."""
        try:
            return self._ways[path](body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _price(self, body: bytes) -> QuickAnswer | None:
        answer = self._quote(_decode_request(body), now_ms())
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
        entry = self._near.fresh((request.product_id, request.user_location), now)
        if entry is None or now >= entry.refresh_at or entry.slot.unknown:
            return None
        context = (request.is_prime_member, request.quantity)
        answers = entry.answers
        answer = None if answers is None else answers.get(context)
        if answer is None:
            segment = Segment.MEMBER if request.is_prime_member else Segment.EVERYONE
            answer = encode(quote(decode_sheet(entry.slot.payload), segment, request.quantity, "cache"))
            entry.remember(context, answer)
        return answer
