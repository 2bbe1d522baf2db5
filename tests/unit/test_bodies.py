"""Bodies of many items: taken apart into the same items however they arrive, or refused with a clear reason."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from app.api.bodies import JSON, NDJSON, items_of
from app.api.problems import InvalidBody

ITEMS = st.lists(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=8,
)
CUTS = st.lists(st.integers(0, 400), max_size=6)


def items(
    body: bytes, media_type: str = JSON, cuts: Sequence[int] = (), max_body: int = 10**6, max_item: int = 10**6
) -> list[tuple[int, bytes]]:
    """What is found in a body that arrives cut at these places."""
    ends = sorted({*(cut for cut in cuts if cut < len(body)), len(body)})
    chunks = [body[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    async def gather() -> list[tuple[int, bytes]]:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", media_type.encode())]}
        return [item async for item in items_of(Request(scope, receive), max_body, max_item)]

    return asyncio.run(gather())


def refused(status: int, body: bytes, media_type: str = JSON, **limits: int) -> str:
    with pytest.raises(HTTPException) as refusal:
        items(body, media_type, **limits)
    assert refusal.value.status_code == status
    return refusal.value.detail


@given(ITEMS, CUTS, st.sampled_from([None, 1]), st.booleans())
def test_an_array_is_its_elements(expected: list[Any], cuts: list[int], indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(expected, indent=indent, ensure_ascii=ascii_only)
    try:
        found = items(body.encode(), JSON, cuts)
    except UnicodeEncodeError:  # half of a pair of UTF-16: it has no bytes
        return
    assert [(index, json.loads(item)) for index, item in found] == list(enumerate(expected))


@given(ITEMS, CUTS, st.sampled_from(["\n", "\r\n", "\n \n"]), st.booleans())
def test_lines_are_their_items_and_blank_ones_are_none(
    expected: list[Any], cuts: list[int], end: str, ended: bool
) -> None:
    body = end.join(json.dumps(item) for item in expected) + (end if ended else "")
    found = items(body.encode(), NDJSON, cuts)
    assert [json.loads(item) for _, item in found] == expected
    assert [index for index, _ in found] == [n * (2 if end == "\n \n" else 1) for n in range(len(expected))]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b"", 0),
        (b"   ", 3),
        (b"nonsense", 0),
        (b"[", 1),
        (b"[1", 2),
        (b"[1,", 3),
        (b"[1,]", 3),
        (b"[,1]", 1),
        (b"[1 2]", 3),
        (b"[1]]", 3),
        (b"[1] x", 4),
        (b'[1,"', 3),
        (b"\xef\xbb\xbf[]", 0),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(body: bytes, at: int) -> None:
    assert refused(400, body) == f"The body is not JSON, from character {at} on."


def test_what_is_no_utf8_is_refused_with_the_place() -> None:
    assert refused(400, b'["\xff"]') == "The body is not UTF-8, from byte 2 on."


@pytest.mark.parametrize("body", [b"{}", b'{"items":[]}', b'"[]"', b"1", b"null"])
def test_other_json_than_an_array_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidBody, match="array"):
        items(body)


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
def test_nesting_without_end_is_refused(opened: bytes) -> None:
    assert refused(400, b"[" + opened * 150_000) == "The body is nested too deeply."


def test_digits_without_end_are_taken_for_what_they_are_quickly() -> None:
    assert items(b"[" + b"9" * 900_000 + b"]") == [(0, b"9" * 900_000)]


@pytest.mark.parametrize("media_type", [JSON, NDJSON])
def test_a_body_over_the_limit_is_refused_while_it_arrives(media_type: str) -> None:
    body = b"[" + b" " * 98 + b"]"
    assert items(b"[1]", JSON, max_body=3)
    assert refused(413, body, media_type, max_body=99) == "A body may have 99 bytes at most."


def test_of_a_line_that_is_too_long_only_so_much_is_kept_as_shows_it() -> None:
    body = b"1\n" + b"x" * 5_000 + b"\n2\n" + b"y" * 5_000
    kept = items(body, NDJSON, cuts=range(0, len(body), 50), max_item=100)
    assert [(index, len(item)) for index, item in kept if index in (0, 2)] == [(0, 1), (2, 1)]
    assert all(100 < len(item) <= 151 for index, item in kept if index in (1, 3))
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("media_type", "read"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/x-ndjson;charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("text/plain", False),
        ("", False),
    ],
)
def test_two_media_types_are_read_in_utf8(media_type: str, read: bool) -> None:
    if read:
        assert len(items(b"[1]", media_type)) == 1
    else:
        assert "application/x-ndjson" in refused(415, b"[1]", media_type)
