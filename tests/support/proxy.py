"""A TCP proxy that can be cut, frozen and healed: a network that fails in the ways that networks do."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Proxy:
    """Forwards connections to `port` on this machine; `self.port` is where. Runs in a thread of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._mute: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Every connection ends, and no new one is made."""
        self._call(self._cut)

    def freeze(self) -> None:
        """Connections stay open and are accepted, and nothing passes: half-open."""
        self._call(self._flowing.clear)

    def heal(self, *, resume: bool = False) -> None:
        """New connections work. Those that are there pass on what they kept if they `resume`; else they stay mute
        for ever, as when a router has forgotten them."""
        self._call(lambda: self._heal(resume))

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _cut(self) -> None:
        self._refusing = True
        for connection in self._connections:
            connection.cancel()

    def _heal(self, resume: bool) -> None:
        if not resume:
            self._mute |= self._connections
        self._refusing = False
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        ends = [writer]
        try:
            if not self._refusing:
                await self._flowing.wait()
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                ends.append(back)
                await asyncio.gather(self._pump(connection, reader, back), self._pump(connection, there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the connection ends, which is all that its two ends need to know
        finally:
            for end in ends:
                end.transport.abort()
            self._connections.discard(connection)

    async def _pump(
        self, connection: asyncio.Task[None], source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            if connection not in self._mute:
                sink.write(data)
                await sink.drain()
        raise ConnectionResetError

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, act: Callable[[], object]) -> None:
        async def now() -> None:
            act()

        self._do(now())


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        with suppress(RuntimeError):
            proxy.close()
