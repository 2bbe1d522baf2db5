"""The quick way says what the endpoint says, byte for byte, or leaves it to the endpoint."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from app.api.answers import encode
from app.api.prices import _batch_item
from app.api.quick import QuickAnswer, QuickWay
from app.api.schemas import BatchRequest, PriceRequest
from app.bootstrap import monotonic_ms, now_ms
from app.domain.quote import MAX_QUANTITY, Quote, quote
from app.domain.sheet import encode_sheet
from app.services.near_cache import NearCache
from app.services.quoting import Answer
from app.services.slots import UNKNOWN, Name, Slot
from tests.unit.strategies import batch, promotion, row

Model = TypeVar("Model", bound=BaseModel)

(SHEET,) = batch([row()], promotions=[promotion()]).sheets()
PRODUCT, LOCATION = SHEET.product_id, SHEET.location
HOUR_MS = 3_600_000


def near_cache(refresh_in_ms: int = HOUR_MS, fresh_for_ms: int = HOUR_MS) -> NearCache:
    """Has one price at hand, and knows of one product that it does not exist."""
    made = NearCache(10, HOUR_MS, monotonic_ms)
    made.heard(monotonic_ms())
    now = now_ms()
    made.put((PRODUCT, LOCATION), slot(SHEET.version, encode_sheet(SHEET), fresh_for_ms), now + refresh_in_ms, 1)
    made.put(("P-none", LOCATION), slot(UNKNOWN, b"there is none", HOUR_MS), now + HOUR_MS, 1)
    return made


def slot(version: int, payload: bytes, fresh_for_ms: int) -> Slot:
    return Slot(version, now_ms(), now_ms() + fresh_for_ms, payload)


async def bring_nothing(names: Sequence[Name]) -> Collection[Name]:
    return ()


def quick_way(
    near: NearCache, bring: Callable[[Sequence[Name]], Awaitable[Collection[Name]]] = bring_nothing
) -> QuickWay:
    return QuickWay(near, bring)


WAY = quick_way(near_cache())
PRICE, BATCH = "/api/v1/price", "/api/v1/prices/batch"


def quick_answer(body: bytes, way: QuickWay = WAY, path: str = PRICE) -> bytes | None:
    answer = way.answer(path, body)
    return answer and answer.body


def parsed(model: type[Model], body: bytes) -> Model | None:
    try:
        request = model.model_validate_json(body)
        assert model.model_validate(json.loads(body)) == request  # FastAPI reads the body so
    except ValidationError:
        return None
    return request


def quoted(request: PriceRequest) -> Quote | None:
    if (request.product_id, request.user_location) != (PRODUCT, LOCATION):
        return None
    asked = request.quote_request()
    return quote(PRODUCT, LOCATION, SHEET, asked.segment, asked.quantity, "cache")


def endpoints_answer(body: bytes) -> bytes | None:
    """What POST /api/v1/price answers where the price is cached; None where it refuses."""
    request = parsed(PriceRequest, body)
    answer = request and quoted(request)
    return encode(answer) if answer else None


def endpoints_batch(body: bytes) -> QuickAnswer | None:
    """The same of POST /api/v1/prices/batch, and how many quotes are in it."""
    request = parsed(BatchRequest, body)
    quotes = [quoted(item) for item in request.items] if request else [None]
    items = [_batch_item(Answer(quote, 0, at_hand=True)) for quote in quotes if quote]
    return QuickAnswer(encode({"items": items}), len(items)) if len(items) == len(quotes) else None


def written(pairs: list[tuple[str, str]], space: str = "") -> bytes:
    """A JSON object of keys and values that are written already: also with keys twice."""
    inside = f",{space}".join(f"{json.dumps(key)}{space}:{space}{value}" for key, value in pairs)
    return f"{space}{{{space}{inside}{space}}}{space}".encode(errors="surrogatepass")


REQUIRED = [("product_id", json.dumps(PRODUCT)), ("user_location", json.dumps(LOCATION))]

plain = st.fixed_dictionaries(
    {"product_id": st.just(PRODUCT), "user_location": st.just(LOCATION)},
    optional={"is_prime_member": st.booleans(), "quantity": st.integers(1, MAX_QUANTITY)},
)
numbers = st.sampled_from(
    ["0", "-0", "-1", "1", "1.0", "1.5", "1e0", "1E2", "10e-1", "01", "+1", ".5", "1.", "NaN", "Infinity", "1e400"]
    + [str(n) for n in (MAX_QUANTITY, MAX_QUANTITY + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400)]
)
texts = st.one_of(
    st.sampled_from([PRODUCT, LOCATION, "", f" {PRODUCT}", f"{PRODUCT} ", f"{PRODUCT}\n", f"{PRODUCT}\0", "P-none"])
    | st.sampled_from(["1", "1.0", "true", "on", "yes", "no", "0", "Ｐ-1", "\ufeff", "é", "\U0001f4b6", "x" * 100_000]),
    st.text(max_size=8),
)
values = st.one_of(
    numbers,
    texts.map(json.dumps),
    texts.map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(["true", "false", "null", "[]", "{}", "True", "", '"\\ud800"', '"\\u0050-1"', '"\\x50"', "'P-1'"]),
    st.just(json.dumps(PRODUCT)),
    st.just(json.dumps(LOCATION)),
)
keys = st.sampled_from(["product_id", "user_location", "is_prime_member", "quantity", "Quantity", "extra", ""])
spaces = st.sampled_from(["", " ", "\n\t ", "\r\n", "\u00a0", "\x0b"])
unusual = st.builds(
    written,
    st.lists(st.tuples(keys, values), max_size=3).flatmap(lambda more: st.permutations(REQUIRED + more)),
    spaces,
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A body that something has happened to on the way."""
    body = draw(st.one_of(plain.map(lambda fields: json.dumps(fields).encode()), unusual))[:300]
    at = draw(st.integers(0, len(body)))
    harm = draw(st.sampled_from([b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"{", b"}", b",", b'"', b"//"]))
    keep = draw(st.sampled_from([at, at + 1, len(body)]))
    return body[:at] + harm + body[keep:]


bodies = st.one_of(
    plain.map(lambda fields: json.dumps(fields).encode()),
    unusual,
    broken(),
    st.binary(max_size=40),
    st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(lambda name: written(REQUIRED).decode().encode(name)),
    st.just(b"[" * 100_000),
    st.just(written([*REQUIRED, ("quantity", "9" * 5_000)])),
)


@settings(max_examples=1000)
@given(bodies)
@example(written([*REQUIRED, ("quantity", '"x"'), ("quantity", "2")]))
@example(written([*REQUIRED, ("quantity", "2"), ("quantity", "3")]))
@example(written([*REQUIRED, ("quantity", "1.0")]))
@example(written([*REQUIRED, ("is_prime_member", "1")]))
def test_an_answer_at_hand_is_the_endpoints_answer_or_none(body: bytes) -> None:
    answer = quick_answer(body)
    if answer is not None:
        assert answer == endpoints_answer(body)


@given(plain, st.sampled_from([None, 2]), st.booleans(), st.randoms(use_true_random=False))
def test_every_plainly_valid_body_of_a_price_at_hand_is_answered_quickly(
    fields: dict[str, Any], indent: int | None, ascii_only: bool, order: Any
) -> None:
    pairs = list(fields.items())
    order.shuffle(pairs)
    body = json.dumps(dict(pairs), indent=indent, ensure_ascii=ascii_only).encode()
    answers = {quick_answer(body) for _ in range(2)}  # the second time it is remembered
    assert answers == {endpoints_answer(body)}
    assert None not in answers


@pytest.mark.parametrize("refresh_in_ms", [-1, 0])
def test_a_price_that_is_due_to_be_refreshed_is_left_to_the_endpoint(refresh_in_ms: int) -> None:
    assert quick_answer(written(REQUIRED), quick_way(near_cache(refresh_in_ms))) is None


def test_a_price_that_has_expired_is_left_to_the_endpoint() -> None:
    assert quick_answer(written(REQUIRED), quick_way(near_cache(fresh_for_ms=0))) is None


def test_a_product_that_is_known_not_to_exist_is_left_to_the_endpoint() -> None:
    body = written([("product_id", '"P-none"'), ("user_location", json.dumps(LOCATION))])
    assert quick_answer(body) is None


def test_a_price_is_not_at_hand_while_the_feed_is_lost() -> None:
    near = near_cache()
    assert quick_answer(written(REQUIRED), quick_way(near)) is not None
    near.lost()
    assert quick_answer(written(REQUIRED), quick_way(near)) is None


def fetched(body: bytes, present: bool) -> tuple[bytes | None, list[Name]]:
    """What the quick way answers where this process has nothing at hand, and what it asked the shared cache for."""
    asked: list[Name] = []
    near = NearCache(10, HOUR_MS, monotonic_ms)
    near.heard(monotonic_ms())

    async def bring(names: Sequence[Name]) -> Collection[Name]:
        asked.extend(names)
        if present:
            near.put((PRODUCT, LOCATION), slot(SHEET.version, encode_sheet(SHEET), HOUR_MS), now_ms() + HOUR_MS, 1)
        return ()

    answer = asyncio.run(quick_way(near, bring).fetch(PRICE, body))
    return answer and answer.body, asked


def test_what_only_the_shared_cache_has_is_brought_and_answered_in_the_same_way() -> None:
    body = written(REQUIRED)
    assert fetched(body, present=True) == (quick_answer(body), [(PRODUCT, LOCATION)])
    assert fetched(body, present=False) == (None, [(PRODUCT, LOCATION)])


def test_of_each_item_is_said_whether_it_was_brought_from_the_database() -> None:
    near = near_cache()
    there: Name = ("P-there", LOCATION)

    def keep(name: Name) -> None:
        near.put(name, slot(SHEET.version, encode_sheet(SHEET), HOUR_MS), now_ms() + HOUR_MS, 1)

    async def bring(names: Sequence[Name]) -> Collection[Name]:
        for name in names:
            keep(name)
        return {there}

    items = [{"product_id": product, "user_location": LOCATION} for product in (PRODUCT, *["P-there"] * 2, "P-cached")]
    answer = asyncio.run(quick_way(near, bring).fetch(BATCH, json.dumps({"items": items}).encode()))
    assert answer is not None
    sources = [item["quote"]["source"] for item in json.loads(answer.body)["items"]]
    assert sources == ["cache", "database", "database", "cache"]
    assert (answer.quotes, answer.brought, answer.loaded) == (4, 1, 2)


@pytest.mark.parametrize("value", ["", "a/b", " a", "a\n", "-a", "é", "a" * 101])
@pytest.mark.parametrize("field", ["product_id", "user_location"])
def test_what_is_no_id_is_never_looked_up(field: str, value: str) -> None:
    """Two names could share a key then."""
    values = {"product_id": PRODUCT, "user_location": LOCATION, field: value}
    assert fetched(json.dumps(values).encode(), present=True) == (None, [])


outsides = st.sampled_from(
    [
        b'{"items":[%b]}',
        b' {"items" : [ %b ] } ',
        b'{"items":[%b],"more":1}',
        b'{"items":%b}',
        b"[%b]",
        b'{"items":[%b,]}',
        b'{"items":[],"items":[%b]}',
        b'{"items":[%b],"items":[]}',
        b'{"items":[%b]',
        b'{"items":[%b]}]',
        b'{"items":null}',
    ]
)


@settings(max_examples=500)
@given(outsides, st.lists(st.one_of(plain.map(lambda fields: json.dumps(fields).encode()), bodies), max_size=3))
def test_a_batch_at_hand_is_answered_as_the_endpoint_answers_it_or_not_at_all(
    outside: bytes, items: list[bytes]
) -> None:
    body = outside.replace(b"%b", b",".join(items))
    answer = WAY.answer(BATCH, body)
    if answer is not None:
        assert answer == endpoints_batch(body)


@given(st.lists(plain, min_size=1, max_size=20))
def test_every_plainly_valid_batch_of_prices_at_hand_is_answered_quickly(items: list[dict[str, Any]]) -> None:
    body = json.dumps({"items": items}).encode()
    assert WAY.answer(BATCH, body) == endpoints_batch(body) != None  # noqa: E711 - a chain


@pytest.mark.parametrize(("count", "quick"), [(0, False), (1000, True), (1001, False)])
def test_a_batch_has_as_many_items_as_the_contract_allows(count: int, quick: bool) -> None:
    body = b'{"items":[%b]}' % b",".join([written(REQUIRED)] * count)
    assert (WAY.answer(BATCH, body) is not None) == quick == (endpoints_batch(body) is not None)
