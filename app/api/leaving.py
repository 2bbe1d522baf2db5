"""How an API process leaves: every request that reached it is answered, and no client finds its connection cut.

A client that keeps its connection may be sending its next request at the very moment at which the server closes it.
So nothing is closed that a client may be using: from the signal on every answer says `Connection: close`, and it is the
client who goes. What nobody has used for a while is closed at the end.

1. Others take over. The process goes on accepting connections until another one does, since at a reload (SIGHUP)
   gunicorn sends the old processes away before the new ones serve. Where the whole server stops, nobody will.
2. It accepts no more, except what has arrived already, and answers until all clients have gone, `FAREWELL_S` at most.
3. Idle connections are closed; requests in hand are answered, within `IN_HAND_S`.

SIGTERM begins this, and again cuts 1 and 2 short. (Gunicorn repeats it each second where there is one worker too many.)
SIGINT and SIGQUIT end the process at once. Nothing of it costs anything while the process serves.
"""

import asyncio
import mmap
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import stopping

REPLACED_WITHIN_S = 10.0
FAREWELL_S = 3.0
IN_HAND_S = 12  # with what has passed since the last sign of life, less than gunicorn's `timeout`
_LOOK_S = 0.05

_serving = mmap.mmap(-1, 256)
"""A byte for each process that accepts connections, at its number modulo 256, shared by master and workers."""


def gone(place: int) -> None:
    """For the master: the process with this number has ended, however it did."""
    _serving[place % len(_serving)] = 0


class LeavingServer(uvicorn.Server):
    """`place` is the number of this process among those that its master ever started."""

    def __init__(self, config: uvicorn.Config, place: int) -> None:
        super().__init__(config)
        self._place = place % len(_serving)
        self._hurried = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _serving[self._place] = 1

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _serving[self._place] = 0
        self._say_goodbye()
        await self._wait_until(_others_serve, REPLACED_WITHIN_S)
        await self._stop_accepting(sockets or [])
        await self._wait_until(lambda: not self.server_state.connections, FAREWELL_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike the stock server this one does not send itself the same signal again in the end, which would kill
        the process before it has sent its last spans."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.leave)
        loop.add_signal_handler(signal.SIGINT, self.leave_at_once)
        loop.add_signal_handler(signal.SIGQUIT, self.leave_at_once)
        yield

    def leave(self) -> None:
        self._hurried = self.should_exit
        self.should_exit = True

    def leave_at_once(self) -> None:
        self.should_exit = self.force_exit = self._hurried = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _say_goodbye(self) -> None:
        self.config.encoded_headers.append((b"connection", b"close"))  # `on_tick` takes it up
        application: Any = self.config.loaded_app
        application.paths = frozenset()  # what is answered at once would keep its connection
        for connection in self.server_state.connections:
            assert isinstance(connection, HttpToolsProtocol)
            if connection.cycle is not None and not connection.cycle.response_started:
                connection.cycle.keep_alive = False

    async def _wait_until(self, condition: Callable[[], object], limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while True:
            await self.on_tick(0)  # the master wants to hear from us, and answers have a date
            await asyncio.sleep(_LOOK_S)  # at least once: what was accepted has to be seen
            if condition() or self._hurried or loop.time() > end:
                return

    async def _stop_accepting(self, sockets: list[socket.socket]) -> None:
        """What waits in the queue of a socket is lost with its last owner, so it is taken along."""
        waiting: list[socket.socket] = []
        for listening in sockets:
            with suppress(BlockingIOError):
                while True:
                    waiting.append(listening.accept()[0])
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with suppress(OSError):  # its client has gone already
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _others_serve() -> bool:
    return stopping.everything_stops() or _serving.find(b"\1") >= 0
