"""HTTP as uvicorn speaks it, but for requests that can be answered at once: those need no task, scope or messages.

A request that arrives whole, to a path of the quick way, is offered to the application before the ASGI machinery,
which costs more than the answer does, is set up for it. Whatever is not answered there goes on as if nothing had been.
"""

from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class AtOnce(Protocol):
    """What an application offers beside ASGI."""

    paths: frozenset[bytes]
    """URLs that it may answer at once."""

    def at_once(
        self, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: tuple[str, int] | None
    ) -> tuple[bytes, bytes] | None:
        """A 200 OK to a POST of this client: its headers, to the empty line, and its body; None where it has to be
        asked by ASGI."""
        ...


class QuickProtocol(HttpToolsProtocol):
    """One connection to an application that is `AtOnce` too, and not wrapped. Relies on how uvicorn 0.54 divides its
    work among the parser's callbacks; a test compares the two."""

    _held: list[bytes] | None = None
    """The body so far of a request that may be answered at once."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._quick: AtOnce = config.loaded_app

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None:  # not whole: it may take long, or grow large
            self._let_go()

    def on_message_begin(self) -> None:
        """The scope is made when it is needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        if (
            self.url in self._quick.paths
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
        ):
            self._held = []
        else:
            self._begin()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        if self._held is not None:
            try:
                answer = self._quick.at_once(self.url, self.headers, b"".join(self._held), self.client)
            except Exception:  # the parser would call it an invalid request
                self.logger.exception("a request could not be answered at once")
                answer = None
            if answer is not None:
                self._held = None
                self.transport.write(b"".join((self._head(), *answer)))
                self.on_response_complete()
                return
            self._let_go()
        super().on_message_complete()

    def _let_go(self) -> None:
        """Leave the request to the application, as far as it has come."""
        held, self._held = self._held or [], None
        self._begin()
        for body in held:
            super().on_body(body)

    def _begin(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # the list that the scope has
        super().on_headers_complete()

    def _head(self) -> bytes:
        lines = (b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        return b"HTTP/1.1 200 OK\r\n" + b"".join(lines)
