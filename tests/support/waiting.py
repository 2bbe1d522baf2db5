"""The only way a test waits: for an outcome, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float = 10.0) -> T:
    """What `condition` returns, as soon as it is true and raises nothing.

    After `timeout_s` seconds its last exception is raised, or AssertionError with its last answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = condition()
        except Exception:
            if time.monotonic() > deadline:
                raise
        else:
            if answer:
                return answer
            assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s:g} s"
        time.sleep(0.02)


async def soon(condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0) -> T:
    """`eventually`, on an event loop: others go on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = condition()
        answer = await asked if isinstance(asked, Awaitable) else asked
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s:g} s"
        await asyncio.sleep(0.005)
