"""What is asked: bodies of requests, drawn by popularity, as files that every load goes round."""

import json
import random
from pathlib import Path

from loadtests.popularity import Row

REQUESTS = 200_000
"""Requests in one file; every load goes round it."""


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
