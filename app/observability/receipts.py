"""Who waits on an event loop until what is kept of their request is safe."""

import asyncio
import threading
from collections import deque


class Receipts:
    """`wake` is set whenever somebody waits."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, number: int) -> None:
        """Until the request with this number is kept. Numbers come in their order."""
        self._loop = asyncio.get_running_loop()
        future = self._loop.create_future()
        self._waiting.append((number, future))
        self.wake.set()
        await future

    def give(self, number: int) -> None:
        """All up to this number are kept; from any thread."""
        if self._waiting and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._give, number)

    def _give(self, number: int) -> None:
        while self._waiting and self._waiting[0][0] <= number:
            _, future = self._waiting.popleft()
            if not future.done():  # its client may have gone
                future.set_result(None)
