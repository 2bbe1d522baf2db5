"""JSON out. Decimals become numbers with exactly the digits they have, so 12.90 stays 12.90."""

from typing import Any

import msgspec
from fastapi import Response
from pydantic import BaseModel

encode = msgspec.json.Encoder(decimal_format="number").encode


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response of a msgspec struct, a pydantic model, or plain data that holds them."""
    body = encode(content.model_dump() if isinstance(content, BaseModel) else content)
    return Response(body, status, headers, media_type="application/json")
