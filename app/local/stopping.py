"""Being asked to stop, by Ctrl-C or a signal, at any moment of a start."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Stopped(BaseException):
    """Somebody asked us to stop. Like KeyboardInterrupt, no `except Exception` on the way may take it."""


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are counted, and interrupt only what allows it.

    An exception out of a signal handler can strike between starting a process and
    remembering it. So it is raised only inside `interruptible`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._may_raise = False

    def __enter__(self) -> "StopSignals":
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._receive) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._may_raise:
            self._may_raise = False  # once: what runs next is the way out
            raise Stopped

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raises `Stopped` in the body as soon as a signal arrives, or at once if one has."""
        self._may_raise = True
        try:
            if self.count:
                raise Stopped
            yield
        finally:
            self._may_raise = False

    def pause(self, seconds: float) -> None:
        """Wait, or raise `Stopped`."""
        with self.interruptible():
            time.sleep(seconds)
