"""Trying again what may pass."""

import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from app.errors import TRANSIENT

T = TypeVar("T")


class Patience(NamedTuple):
    """`tries` in all. Waits are anything up to a bound that doubles from `first_s` to `longest_s` (full jitter), on
    top of what the error asks for; where that is more than `longest_s`, it is for somebody else to come later."""

    tries: int = 3
    first_s: float = 0.1
    longest_s: float = 2.0


class Retry:
    """`wait` is given seconds, and tells whether it is of no use to go on, as when the process is to end."""

    def __init__(
        self,
        patience: Patience,
        wait: Callable[[float], bool],
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._patience, self._wait, self._jitter = patience, wait, jitter

    def call(self, do: Callable[[], T], failed: Callable[[Exception], bool] = lambda error: True) -> T:
        """What `do` returns. Raises its error at once where that does not pass by itself, and else after the last
        try, or once `failed`, which is told of each failure that may pass, says that there shall be no other."""
        bound_s = self._patience.first_s
        for tries_left in range(self._patience.tries - 1, -1, -1):
            try:
                return do()
            except TRANSIENT as error:
                asked_s: float = getattr(error, "retry_after_s", 0)
                goes_on = failed(error) and tries_left > 0 and asked_s <= self._patience.longest_s
                if not goes_on or self._wait(asked_s + self._jitter(0, bound_s)):
                    raise
            bound_s = min(bound_s * 2, self._patience.longest_s)
        raise AssertionError("a patience has at least one try")
