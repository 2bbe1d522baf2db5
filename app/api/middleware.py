"""What happens around every request: its span, its duration, its access record, the limit of its body; and the
quick way for prices that are at hand."""

import time
from collections.abc import Collection, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import context, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import quick
from app.api.problems import make_problem, problem_response
from app.observability import metrics
from app.observability.requests import Kind, RequestLog
from app.observability.tracing import RequestTrace, begin_request_trace

_tracer = trace.get_tracer(__name__)


class RequestMiddleware:
    """Continues the client's trace or begins one, and answers with its `traceparent`.

    Only sampled requests get a span; the others have ids, for logs and problem documents. The quick way is asked
    first for what it serves: by `at_once`, where the protocol offers a request there, or by ASGI.
    """

    def __init__(self, app: ASGIApp, log: RequestLog, quick_way: quick.QuickWay, sample_ratio: float) -> None:
        self._app, self._log, self.quick_way, self._sample_ratio = app, log, quick_way, sample_ratio
        self._kinds = {path.encode(): Kind("POST", path, 200) for path in quick_way.paths}
        self.paths = frozenset(self._kinds)

    def at_once(self, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        """The rest of the answer to a POST to one of `paths`, from its own headers on; None where it takes more than
        what this process has at hand."""
        began = time.perf_counter()
        kind = self._kinds[path]
        answer = self.quick_way.answer(kind.route, body) if quick.JSON in headers else None
        if answer is None:
            return None
        request = begin_request_trace(headers, self._sample_ratio)
        if request.sampled:
            spent_ns = int((time.perf_counter() - began) * 1e9)
            with _span(request, kind.method, start_time=time.time_ns() - spent_ns) as span:
                request = request.of_span(span)
                _describe(span, kind.route, kind)
        ended = time.perf_counter()
        self._log.note((ended, kind, ended - began, request, answer.quotes))
        return b"content-type: application/json\r\ncontent-length: %d\r\ntraceparent: %b\r\n\r\n%b" % (
            len(answer.body),
            request.traceparent,
            answer.body,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request = begin_request_trace(scope["headers"], self._sample_ratio)
        if request.sampled:
            with _span(request, scope["method"]) as span:
                request = request.of_span(span)
                kind, at_hand = await self._serve(scope, receive, send, request)
                _describe(span, scope["path"], kind)
        else:
            kind, at_hand = await self._serve(scope, receive, send, request)
        ended = time.perf_counter()
        self._log.note((ended, kind, ended - began, request, at_hand))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: RequestTrace) -> tuple[Kind, int]:
        """Answer; of what kind the request was, and how many quotes came from this process' memory at once."""
        path = scope["path"]
        if path in self.quick_way.paths and scope["method"] == "POST" and quick.JSON in scope["headers"]:
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                body = message["body"]
                answer = self.quick_way.answer(path, body) or await self.quick_way.fetch(path, body)
                if answer is not None:
                    headers = [
                        (b"content-type", b"application/json"),
                        (b"content-length", b"%d" % len(answer.body)),
                        (b"traceparent", request.traceparent),
                    ]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": answer.body})
                    if answer.brought:
                        metrics.quotes.labels("cache").inc(answer.brought)
                    return Kind("POST", path, 200), answer.quotes - answer.brought
            receive = _replayed(message, receive)
        status, answered = 500, False

        async def send_with_trace(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered = True
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"traceparent", request.traceparent)]
            await send(message)

        token = None if request.sampled else context.attach(request.context())
        try:
            await self._app(scope, receive, send_with_trace)
        except Exception:
            if not answered:
                raise
            # Starlette raises again what it has answered and logged as a defect: it counts like any other answer.
        finally:
            if token is not None:
                context.detach(token)
        return Kind(scope["method"], _route(scope), status), 0


def _span(request: RequestTrace, name: str, start_time: int | None = None) -> AbstractContextManager[trace.Span]:
    """The request's span, which began at `start_time` (ns since 1970) or begins now."""
    return _tracer.start_as_current_span(
        name,
        context=request.parent_context(),
        kind=trace.SpanKind.SERVER,
        start_time=start_time,
        set_status_on_exception=False,
    )


def _describe(span: trace.Span, path: str, kind: Kind) -> None:
    span.update_name(f"{kind.method} {kind.route}")
    span.set_attributes(
        {
            "http.request.method": kind.method,
            "http.route": kind.route,
            "url.path": path,
            "url.scheme": "http",
            "http.response.status_code": kind.status,
        }
    )
    if kind.status >= 500:
        span.set_attribute("error.type", str(kind.status))
        span.set_status(trace.StatusCode.ERROR)


def _replayed(first: Message, receive: Receive) -> Receive:
    """What `receive` gives, with a message in front that was taken already."""
    pending: list[Message] = [first]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit, by its Content-Length or while it arrives. The endpoints on the paths
    `streamed` read theirs themselves."""

    def __init__(self, app: ASGIApp, max_bytes: int, streamed: Collection[str] = ()) -> None:
        self._app, self._max_bytes, self._streamed = app, max_bytes, frozenset(streamed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._streamed:
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        whole: MutableMapping[str, Any] | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def receive_whole() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        await self._app(scope, receive_whole, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = make_problem(413, "body_too_large", f"A body may have {self._max_bytes} bytes at most.")
        await problem_response(problem, {"Connection": "close"})(scope, receive, send)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _route(scope: Scope) -> str:
    """The route's template; one word for all that match none, so that paths never become labels."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
