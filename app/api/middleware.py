"""What happens around every request: its span, its duration, its access record, the limit of its body; and the
quick way for prices that are at hand."""

import time
from collections.abc import MutableMapping
from typing import Any

from opentelemetry import context, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import quick
from app.api.problems import make_problem, problem_response
from app.observability.requests import Record, RequestLog
from app.observability.tracing import RequestTrace, begin_request_trace

_tracer = trace.get_tracer(__name__)


class RequestMiddleware:
    """Continues the client's trace or begins one, and answers with its `traceparent`.

    Only sampled requests get a span; the others have ids, for logs and problem documents. The quick way is asked
    first for what it serves.
    """

    def __init__(self, app: ASGIApp, log: RequestLog, quick_way: quick.QuickWay, sample_ratio: float) -> None:
        self._app, self._log, self._quick_way, self._sample_ratio = app, log, quick_way, sample_ratio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request = begin_request_trace(scope["headers"], self._sample_ratio)
        if request.sampled:
            with _tracer.start_as_current_span(
                scope["method"],
                context=request.parent_context(),
                kind=trace.SpanKind.SERVER,
                set_status_on_exception=False,
            ) as span:
                route, status, at_hand = await self._serve(scope, receive, send, request.of_span(span))
                _describe(span, scope, route, status)
        else:
            route, status, at_hand = await self._serve(scope, receive, send, request)
        seconds = time.perf_counter() - started
        self._log.note(Record(time.time(), scope["method"], route, status, seconds, request.trace_id, at_hand))

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: RequestTrace) -> tuple[str, int, int]:
        """Answer; the route's template, the status, and how many quotes the quick way gave."""
        path = scope["path"]
        if self._quick_way.serves(path) and scope["method"] == "POST" and quick.JSON in scope["headers"]:
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                body = message["body"]
                answer = self._quick_way.answer(path, body) or await self._quick_way.fetch(path, body)
                if answer is not None:
                    headers = [
                        (b"content-type", b"application/json"),
                        (b"content-length", b"%d" % len(answer.body)),
                        (b"traceparent", request.traceparent),
                    ]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": answer.body})
                    return path, 200, answer.quotes
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
        return _route(scope), status, 0


def _describe(span: trace.Span, scope: Scope, route: str, status: int) -> None:
    span.update_name(f"{scope['method']} {route}")
    span.set_attributes(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"],
            "http.response.status_code": status,
        }
    )
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)


def _replayed(first: Message, receive: Receive) -> Receive:
    """What `receive` gives, with a message in front that was taken already."""
    pending: list[Message] = [first]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit, by its Content-Length or while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
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
