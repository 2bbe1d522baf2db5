"""What a listener does now and then."""

import time
from collections.abc import Callable


class Chore:
    """Something to do every `interval_s` seconds, or after as many as it says itself."""

    def __init__(self, do: Callable[[], float | None], interval_s: float) -> None:
        self._do, self._interval_s = do, interval_s
        self._due = 0.0

    def do_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval_s
            own_s = self._do()
            if own_s is not None:
                self._due = time.monotonic() + own_s

    def due_in_s(self) -> float:
        return max(0.0, self._due - time.monotonic())
