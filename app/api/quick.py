"""The quick way: a price that this process has at hand, answered without routing, validation models or I/O.

It accepts exactly what `PriceRequest` accepts in strict JSON types, and leaves everything else, wrong or merely
unusual, to the endpoint, which decides and explains. A test holds the two equal.
"""

from typing import Annotated

import msgspec

from app.api.answers import encode
from app.bootstrap import now_ms
from app.domain.columns import Segment
from app.domain.quote import MAX_QUANTITY, quote
from app.domain.sheet import decode_sheet
from app.services.near_cache import NearCache

PATH = "/api/v1/price"
JSON = (b"content-type", b"application/json")
"""The header that a quick request has; every other way to say that a body is JSON is the endpoint's to judge."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    product_id: str  # whatever is not an id is not in the near cache either
    user_location: str
    is_prime_member: bool = False
    quantity: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUANTITY)] = 1


_decode = msgspec.json.Decoder(_Request).decode


def quick_answer(near: NearCache, body: bytes) -> bytes | None:
    """The answer to a POST /api/v1/price with this body, or None where the endpoint has to look."""
    try:
        request = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    now = now_ms()
    entry = near.fresh((request.product_id, request.user_location), now)
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
