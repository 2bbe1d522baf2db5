"""A TCP proxy that can be cut, frozen and healed: a network that fails in the ways that networks do."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SAID_BYTES = 10_000
"""What a connection is known by: the beginning of what its client says."""


class Proxy:
    """Forwards connections to a port of this machine, or to a Unix socket; `self.port` is where. Runs in a thread
    of its own."""

    def __init__(self, target: int | Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._mute: set[asyncio.Task[None]] = set()
        self._said: dict[asyncio.Task[None], bytes] = {}
        self._swallowed = self._refused = b""
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

    def swallow(self, command: bytes) -> None:
        """Connections whose client says this, or has said it, stay open, and nothing passes: half-open for them
        alone."""
        self._call(lambda: self._select(command, b""))

    def refuse(self, command: bytes) -> None:
        """Connections whose client says this, or has said it, end."""
        self._call(lambda: self._select(b"", command))

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

    def _select(self, swallowed: bytes, refused: bytes) -> None:
        self._swallowed, self._refused = swallowed, refused
        for connection, said in self._said.items():
            if refused and refused in said:
                connection.cancel()

    def _heal(self, resume: bool) -> None:
        if not resume:
            mute = self._connections if self._swallowed == b"" else filter(self._is_mute, self._connections)
            self._mute |= set(mute)
        self._refusing = False
        self._swallowed = self._refused = b""
        self._flowing.set()

    def _is_mute(self, connection: asyncio.Task[None]) -> bool:
        swallowed = bool(self._swallowed) and self._swallowed in self._said[connection]
        return swallowed or connection in self._mute

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        self._said[connection] = b""
        ends = [writer]
        try:
            if not self._refusing:
                await self._flowing.wait()
                there, back = await self._connect()
                ends.append(back)
                await asyncio.gather(
                    self._pump(connection, reader, back, True), self._pump(connection, there, writer, False)
                )
        except (OSError, asyncio.CancelledError):
            pass  # the connection ends, which is all that its two ends need to know
        finally:
            for end in ends:
                end.transport.abort()
            self._connections.discard(connection)
            del self._said[connection]

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(
        self, connection: asyncio.Task[None], source: asyncio.StreamReader, sink: asyncio.StreamWriter, asks: bool
    ) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            if asks and len(self._said[connection]) < SAID_BYTES:
                self._said[connection] += data
                if self._refused and self._refused in self._said[connection]:
                    break
            if not self._is_mute(connection):
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
def proxy_to(target: int | Path) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        with suppress(RuntimeError):
            proxy.close()
