"""A circuit breaker: after repeated failures, fail at once for a while, then try with one call."""

from collections.abc import Callable

from app.errors import Unavailable


class Breaker:
    """Closed until `failures` in a row; then open for `open_ms`; then half-open, where one call decides: the only one
    for `try_ms`, the longest that it takes (`open_ms` if not given).

    `clock` gives ms that never run backwards.
    """

    def __init__(
        self, what: str, failures: int, open_ms: int, clock: Callable[[], int], try_ms: int | None = None
    ) -> None:
        self._what, self._limit, self._open_ms, self._clock = what, failures, open_ms, clock
        self._try_ms = open_ms if try_ms is None else try_ms
        self._failures = 0
        self._try_at = 0

    @property
    def closed(self) -> bool:
        return self._failures < self._limit

    def check(self) -> None:
        """Raises `Unavailable` while open. Passing while half-open makes the caller the one that tries."""
        if self.closed:
            return
        now = self._clock()
        if now < self._try_at:
            raise Unavailable(f"{self._what} has failed repeatedly; it is tried again in a moment")
        self._try_at = now + self._try_ms

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._try_at = self._clock() + self._open_ms
