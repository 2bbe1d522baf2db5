"""What happens around every request: its span, its duration, its access record, the limit of its body."""

import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import make_problem, problem_response
from app.observability import metrics
from app.observability.tracing import context_from

_tracer = trace.get_tracer(__name__)
_logger = structlog.get_logger("access")


class RequestMiddleware:
    """Continues the client's trace or begins one, and answers with its `traceparent`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        method = scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with _tracer.start_as_current_span(
            method, context=context_from(headers), kind=trace.SpanKind.SERVER, set_status_on_exception=False
        ) as span:
            context = span.get_span_context()
            traceparent = (
                f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
                f"-{context.trace_flags:02x}"
            )

            async def send_with_trace(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message["headers"] = [*message.get("headers", ()), (b"traceparent", traceparent.encode())]
                await send(message)

            try:
                await self._app(scope, receive, send_with_trace)
            finally:
                seconds = time.perf_counter() - started
                route = _route(scope)
                metrics.http_request_duration.labels(method, route, str(status)).observe(seconds)
                if span.is_recording():
                    span.update_name(f"{method} {route}")
                    span.set_attributes(
                        {
                            "http.request.method": method,
                            "http.route": route,
                            "url.path": scope["path"],
                            "http.response.status_code": status,
                        }
                    )
                    if status >= 500:
                        span.set_status(trace.StatusCode.ERROR)
                _logger.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 3))


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
