"""The ladder: the service's own parts, one more on each rung, each as an application.

What a rung cannot answer at once goes to the service, which fills its near cache; the last rung is the service.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import quick
from app.api.middleware import RequestMiddleware
from app.main import create_app
from app.observability.logging import configure_logging
from app.observability.tracing import begin_request_trace
from app.settings import Settings
from loadtests.bench import peers

RUNGS = {
    "asgi": "a constant by ASGI: the ceiling",
    "nothing": "a constant, without ASGI",
    "decode": "+ the body decoded and validated",
    "answer": "+ the price found in the near cache, its answer sent",
    "trace": "+ the trace continued or begun, traceparent in the answer",
    "durations": "+ the span if sampled, durations and counts",
    "whole": "+ access records: the service",
}

PATH = "/api/v1/price"

Client = tuple[str, int] | None
Answer = tuple[bytes, bytes]
"""Headers to the empty line, and body."""
AtOnce = Callable[[bytes, list[tuple[bytes, bytes]], bytes, Client], Answer | None]


class Rung:
    """The service, but for what is answered at once."""

    def __init__(self, make: Callable[[RequestMiddleware, Settings], AtOnce]) -> None:
        settings = Settings(log_level="warning")
        self._service = create_app(settings)
        self.paths = frozenset({PATH.encode()})
        self.at_once = make(self._service, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service(scope, receive, send)


def asgi() -> ASGIApp:
    return peers.ceiling()


def nothing() -> ASGIApp:
    constant = _answer(peers.constant())
    return Rung(lambda service, settings: lambda path, headers, body, client: constant)


def decode() -> ASGIApp:
    constant = _answer(peers.constant())

    def at_once(path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: Client) -> Answer:
        quick.decode_request(body)
        return constant

    return Rung(lambda service, settings: at_once)


def answer() -> ASGIApp:
    return Rung(lambda service, settings: _answering(service.quick_way))


def trace() -> ASGIApp:
    def make(service: RequestMiddleware, settings: Settings) -> AtOnce:
        answering = _answering(service.quick_way)

        def at_once(path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: Client) -> Answer | None:
            found = answering(path, headers, body, client)
            trace = begin_request_trace(dict(headers).get(b"traceparent"), settings.trace_sample_ratio)
            return found and (b"traceparent: %b\r\n%b" % (trace.traceparent, found[0]), found[1])

        return at_once

    return Rung(make)


def durations() -> ASGIApp:
    return Rung(lambda service, settings: service.at_once)


def whole() -> ASGIApp:
    settings = Settings()
    configure_logging(settings, "api")
    return create_app(settings)


def _answering(quick_way: quick.QuickWay) -> AtOnce:
    def at_once(path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: Client) -> Answer | None:
        found = quick_way.answer(PATH, body) if quick.JSON in headers else None
        return found and _answer(found.body)

    return at_once


def _answer(body: bytes) -> Answer:
    return b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body), body
