"""Bodies of many items, read as they arrive: the elements of a JSON array, or the lines of NDJSON."""

import json
import re
from collections.abc import AsyncIterator, Iterator

from fastapi import HTTPException, Request

from app.api.problems import InvalidBody

JSON, NDJSON = "application/json", "application/x-ndjson"

_item = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")


def items_of(request: Request, max_body_bytes: int, max_item_bytes: int) -> AsyncIterator[tuple[int, bytes]]:
    """Each item of the request's body as JSON, with its index; of one over `max_item_bytes` maybe only so many bytes
    and one. Raises `HTTPException` for a body that cannot be read, `InvalidBody` for one that is no array."""
    ndjson = _media_type(request) == NDJSON
    chunks = _chunks(request, max_body_bytes)
    return _lines(chunks, max_item_bytes) if ndjson else _elements(chunks)


def _media_type(request: Request) -> str:
    """Raises `HTTPException` unless we read that."""
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", parameters)
    if media_type.strip() not in (JSON, NDJSON) or (charset and charset[1] not in ("utf-8", "utf8", "us-ascii")):
        raise HTTPException(415, f"The Content-Type must be {JSON} (an array) or {NDJSON}, in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "The body must not be compressed.")
    return media_type.strip()


async def _chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    length = request.headers.get("content-length", "")
    received = int(length) if length.isdecimal() else 0
    if received <= max_bytes:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                break
            yield chunk
    if received > max_bytes:
        raise HTTPException(413, f"A body may have {max_bytes:,} bytes at most.", {"Connection": "close"})


async def _lines(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[tuple[int, bytes]]:
    """Each line that is not blank, with its index, blank ones counted; of one that is too long, the beginning."""
    index, rest = 0, b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield index, line
            index += 1
        rest = rest[: max_bytes + 1]
    if rest.strip():
        yield index, rest


async def _elements(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Each element of a JSON array, with its index."""
    body = b"".join([chunk async for chunk in chunks])
    try:
        for index, element in enumerate(_split(body.decode())):
            yield index, element.encode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"The body is not UTF-8, from byte {error.start} on.") from None
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"The body is not JSON, from character {error.pos} on.") from None
    except RecursionError:
        raise HTTPException(400, "The body is nested too deeply.") from None


def _split(text: str) -> Iterator[str]:
    """The elements of a JSON array as they are written. They are looked at only as far as finding their ends needs,
    one by one, so that a body of very many is not taken apart in one go."""
    at = _past_space(text, 0)
    if text[at : at + 1] != "[":
        _item(text, at)
        raise InvalidBody("The body must be an array of events.")
    at = _past_space(text, at + 1)
    more = text[at : at + 1] != "]"
    while more:
        _, end = _item(text, at)
        yield text[at:end]
        at = _past_space(text, end)
        more = text[at : at + 1] == ","
        if more:
            at = _past_space(text, at + 1)
    if text[at : at + 1] != "]":
        raise json.JSONDecodeError("no comma and no end", text, at)
    if (end := _past_space(text, at + 1)) != len(text):
        raise json.JSONDecodeError("something after the end", text, end)


def _past_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None, "it matches nothing, too"
    return match.end()
