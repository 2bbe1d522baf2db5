"""The service's own protocol sends, byte for byte, what uvicorn's would have sent; only the way differs."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.api.protocol import QuickProtocol

HEADER = (b"x-way", b"any")
DATE = [(b"date", b"Sat, 21 Nov 2026 10:00:00 GMT")]
QUICK = b"POST /quick HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Echo:
    """Says what it was asked, and remembers which way. Bodies with `look` in them are not answered at once."""

    paths = frozenset({b"/quick"})

    def __init__(self) -> None:
        self.at_once_answered: list[bytes] = []
        self.scopes: list[Scope] = []

    def at_once(
        self, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: object
    ) -> tuple[bytes, bytes] | None:
        if b"look" in body:
            return None
        self.at_once_answered.append(body)
        answer = said("POST", path.decode(), headers, body)
        return b"%b: %b\r\ncontent-length: %d\r\n\r\n" % (*HEADER, len(answer)), answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await asyncio.sleep(0)
        answer = said(scope["method"], scope["path"], scope["headers"], body)
        headers = [HEADER, (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def said(method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    pairs = [[name.decode(), value.decode("latin-1")] for name, value in headers]
    return json.dumps([method, path, pairs, body.decode("latin-1")]).encode()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


def talk(protocol: type[HttpToolsProtocol], app: Echo, with_server: Talk, keep_alive_s: int = 30) -> Any:
    """What comes of a conversation with a server that speaks this protocol."""

    async def run() -> Any:
        config = Config(
            app, http=protocol, lifespan="off", log_config=None, proxy_headers=False, timeout_keep_alive=keep_alive_s
        )  # type: ignore[arg-type]
        config.load()
        state = ServerState()
        state.default_headers = DATE
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                return await with_server(reader, writer)
            finally:
                writer.close()
                server.close()

    return asyncio.run(run())


def in_pieces(pieces: list[bytes]) -> Talk:
    """Everything that is answered when these are sent one by one, each read before the next is sent."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for piece in pieces:
            writer.write(piece)
            for _ in range(10):  # turns of the loop, in which the server reads and answers
                await asyncio.sleep(0)
        return await reader.read()

    return send


methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT"])
targets = st.sampled_from(["/quick", "/quick", "/quick", "/quick?a=b", "/other", "/qu%69ck", "http://a/quick"])
bodies = st.sampled_from([b"", b"{}", b"hello", b"look closer", b"x" * 70_000])
headers = st.sampled_from(
    ["", "", "Content-Type: application/json\r\n", "CONTENT-TYPE: text/plain\r\nX-A: \xe9\r\n",
     "Expect: 100-continue\r\n", "Connection: keep-alive\r\n"]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    head = f"{draw(methods)} {draw(targets)} HTTP/1.1\r\nHost: a\r\n{draw(headers)}".encode("latin-1")
    body = draw(bodies)
    if body and draw(st.integers(0, 3)) == 0:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


lasts = st.sampled_from(
    [
        LAST,
        QUICK.replace(b"Host: a", b"Host: a\r\nConnection: close"),
        QUICK.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"),
    ]
)
"""After these the server closes the connection; more would meet a closed door sooner or later."""


def without_hurry(answer: bytes) -> bytes:
    """An interim answer says only that the body has not come yet, which is a matter of luck."""
    return answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


@settings(max_examples=300, deadline=None)
@given(st.lists(requests(), max_size=4), lasts, st.lists(st.integers(1, 400), max_size=8))
def test_the_answers_are_those_of_uvicorn_whatever_is_sent_and_however_it_is_cut(
    asked: list[bytes], last: bytes, lengths: list[int]
) -> None:
    stream = b"".join(asked) + last
    pieces = []
    for length in lengths:
        pieces.append(stream[:length])
        stream = stream[length:]
    send = in_pieces([*pieces, stream])
    answers = [without_hurry(talk(protocol, Echo(), send)) for protocol in (QuickProtocol, HttpToolsProtocol)]
    assert answers[0] == answers[1]


def test_a_request_that_comes_whole_is_answered_at_once_and_everything_else_by_asgi() -> None:
    app = Echo()
    looks = QUICK.replace(b"5\r\n\r\nhello", b"4\r\n\r\nlook")
    head, body = QUICK[:-3], QUICK[-3:]
    closing = QUICK.replace(b"Host: a", b"Host: a\r\nConnection: close")
    answer = talk(QuickProtocol, app, in_pieces([QUICK, QUICK + QUICK, looks, QUICK, head, body, closing]))
    assert app.at_once_answered == [b"hello"] * 4
    assert [scope["method"] for scope in app.scopes] == ["POST"] * 3
    assert len(re.findall(b"HTTP/1.1 200 OK", answer)) == 7


def test_a_request_to_speak_another_protocol_is_answered_by_asgi() -> None:
    app = Echo()
    upgrade = QUICK.replace(b"Host: a", b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c")

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(upgrade)
        return await reader.readuntil(b"h2c")

    assert b"200 OK" in talk(QuickProtocol, app, ask)
    assert not app.at_once_answered


def test_a_defect_in_what_answers_at_once_is_logged_and_the_request_answered_by_asgi(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    app = Echo()
    monkeypatch.setattr(app, "at_once", lambda *_: 1 / 0)
    assert talk(QuickProtocol, app, in_pieces([QUICK + LAST])).count(b"200 OK") == 2
    assert "ZeroDivisionError" in caplog.text


def test_what_follows_a_request_that_is_still_being_answered_waits_for_its_turn() -> None:
    app = Echo()
    answer = talk(QuickProtocol, app, in_pieces([b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n" + QUICK + LAST]))
    assert re.findall(rb'\["\w+", "(/\w+)"', answer) == [b"/first", b"/quick", b"/last"]


def test_an_idle_connection_is_closed_after_an_answer_at_once_too() -> None:
    assert talk(QuickProtocol, Echo(), in_pieces([QUICK]), keep_alive_s=1).count(b"200 OK") == 1


def test_a_client_that_does_not_read_does_not_fill_the_memory() -> None:
    """What the connection cannot take any more waits in ASGI, which waits for the client."""
    app = Echo()
    many, large = 2_000, b"x" * 20_000
    asked = QUICK.replace(b"5\r\n\r\nhello", b"%d\r\n\r\n%b" % (len(large), large))

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        for _ in range(many):
            writer.write(asked)
            for _ in range(5):
                await asyncio.sleep(0)
        before = len(app.at_once_answered)
        writer.write(LAST)
        assert before < many / 2
        return (await reader.read()).count(b"200 OK")

    assert talk(QuickProtocol, app, flood) == many + 1


@pytest.mark.parametrize("protocol", [QuickProtocol, HttpToolsProtocol])
def test_applications_see_the_same_scope(protocol: type[HttpToolsProtocol]) -> None:
    app = Echo()
    talk(protocol, app, in_pieces([QUICK.replace(b"5\r\n\r\nhello", b"4\r\n\r\nlook") + LAST]))
    scope = {key: value for key, value in app.scopes[0].items() if key not in ("client", "server")}
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": "/quick",
        "raw_path": b"/quick",
        "query_string": b"",
        "headers": [(b"host", b"a"), (b"content-length", b"4")],
        "state": {},
    }
