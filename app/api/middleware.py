"""What happens around every request: its span, its duration, its access record, the limit of its body; and the
quick way for prices that are at hand."""

import time
from collections.abc import Collection, MutableMapping
from contextlib import AbstractContextManager
from contextvars import Token
from typing import Any

from opentelemetry import context, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.adapters.rate_limits import RateLimits
from app.api import quick
from app.api.guards import CALLER, STANDING, Headers, standing_headers
from app.api.problems import make_problem, problem_response
from app.domain.api_key import HEADER, Caller, redacted
from app.domain.api_key import Scope as KeyScope
from app.errors import PricingError, Unauthenticated
from app.observability import metrics
from app.observability.notes import Kind
from app.observability.receipts import Receipts
from app.observability.requests import RequestLog
from app.observability.tracing import RequestTrace, begin_request_trace
from app.services.callers import Callers

API_KEY, TRACEPARENT = HEADER.lower().encode(), b"traceparent"

_NO_HEADERS: Headers = []

FORWARDED, USER_ID = b"x-forwarded-for", b"x-user-id"

_tracer = trace.get_tracer(__name__)


class RequestMiddleware:
    """Continues the client's trace or begins one, and answers with its `traceparent`.

    Only sampled requests get a span; the others have ids, for logs and problem documents. The quick way is asked
    first for what it serves: by `at_once`, where the protocol offers a request there, or by ASGI.
    """

    def __init__(
        self,
        app: ASGIApp,
        log: RequestLog,
        quick_way: quick.QuickWay,
        callers: Callers,
        limits: RateLimits,
        sample_ratio: float,
        receipts: Receipts | None = None,
    ) -> None:
        """With `receipts`, no answer leaves before what is kept of its request is safe."""
        self._app, self._log, self.quick_way, self._sample_ratio = app, log, quick_way, sample_ratio
        self._callers, self._limits, self._receipts = callers, limits, receipts
        self._kinds = {path.encode(): Kind("POST", path, 200) for path in quick_way.paths}
        self.paths = frozenset(self._kinds if receipts is None else ())

    def at_once(
        self, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, client: tuple[str, int] | None
    ) -> tuple[bytes, bytes] | None:
        """The answer to a POST to one of `paths`: its own headers, to the empty line, and its body; None where it
        takes more than what this process has at hand."""
        began = time.perf_counter()
        kind = self._kinds[path]
        answer = self.quick_way.answer(kind.route, body) if quick.JSON in headers else None
        if answer is None:
            return None
        fields = dict(headers)
        caller = self._callers.at_once(fields.get(API_KEY))
        if caller is None or not self._callers.may(caller, KeyScope.READ):
            return None
        standing = self._standing_at_once(caller)
        if standing is None:
            return None
        request = begin_request_trace(fields.get(TRACEPARENT), self._sample_ratio)
        if request.sampled:
            spent_ns = int((time.perf_counter() - began) * 1e9)
            with _span(request, kind.method, start_time=time.time_ns() - spent_ns) as span:
                request = request.of_span(span)
                _describe(span, kind.route, kind)
        ended = time.perf_counter()
        traceparent = request.traceparent
        self._log.note(
            ended,
            kind,
            ended - began,
            traceparent,
            answer.quotes,
            len(answer.body),
            caller.key_id,
            client,
            fields.get(FORWARDED),
            fields.get(USER_ID),
        )
        own = b"content-type: application/json\r\ncontent-length: %d\r\ntraceparent: %b\r\n%b\r\n" % (
            len(answer.body),
            traceparent,
            b"".join(b"%b: %b\r\n" % header for header in standing),
        )
        return own, answer.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        fields = dict(scope["headers"])
        request = begin_request_trace(fields.get(TRACEPARENT), self._sample_ratio)
        key_id = await self._identify(scope, fields.get(API_KEY))
        # A process that is killed between an answer and its number would have answered what nobody misses.
        held = _Held(send)
        if request.sampled:
            with _span(request, scope["method"]) as span:
                request = request.of_span(span)
                kind, at_hand, sent_bytes = await self._serve(scope, receive, held, request)
                _describe(span, scope["path"], kind)
        else:
            kind, at_hand, sent_bytes = await self._serve(scope, receive, held, request)
        ended = time.perf_counter()
        number = self._log.note(
            ended,
            kind,
            ended - began,
            request.traceparent,
            at_hand,
            sent_bytes,
            key_id,
            scope.get("client"),
            fields.get(FORWARDED),
            fields.get(USER_ID),
        )
        if self._receipts is not None:
            await self._receipts.wait(number)
        await held.release()

    async def _identify(self, scope: Scope, key: bytes | None) -> str:
        """Note in the scope who calls, or why that is not known; the key's id."""
        scope[CALLER] = self._callers.at_once(key)
        if key is not None and scope[CALLER] is None:
            try:
                scope[CALLER] = await self._callers.identify(key)
            except Unauthenticated as error:
                scope[CALLER] = error
                return error.key_id
            except PricingError as error:
                scope[CALLER] = error
                return ""
        return scope[CALLER].key_id  # type: ignore[no-any-return]

    def _standing_at_once(self, caller: Caller) -> Headers | None:
        """Take a token of a caller with a limit: the headers that say how it stands; None where none is at hand."""
        if caller.rate_limit is None:
            return _NO_HEADERS
        standing = self._limits.at_once(caller)
        return None if standing is None else standing_headers(standing)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: RequestTrace) -> tuple[Kind, int, int]:
        """Answer; of what kind the request was, how many quotes came from this process' memory at once, and how many
        bytes were sent."""
        path, caller = scope["path"], self._callers.reader(scope[CALLER])
        if (
            path in self.quick_way.paths
            and scope["method"] == "POST"
            and quick.JSON in scope["headers"]
            and isinstance(caller, Caller)
            and self._callers.may(caller, KeyScope.READ)
        ):
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                body = message["body"]
                answer = self.quick_way.answer(path, body)
                if answer is None and caller.rate_limit is None:  # who has a limit costs nobody anything beyond it
                    answer = await self._fetch(path, body, request)
                standing = None if answer is None else self._standing_at_once(caller)
                if answer is not None and standing is not None:
                    headers = [
                        (b"content-type", b"application/json"),
                        (b"content-length", b"%d" % len(answer.body)),
                        (b"traceparent", request.traceparent),
                        *standing,
                    ]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": answer.body})
                    if answer.brought:
                        metrics.quotes.labels("cache").inc(answer.brought)
                    if answer.loaded:
                        metrics.quotes.labels("database").inc(answer.loaded)
                    at_hand = answer.quotes - answer.brought - answer.loaded
                    return Kind("POST", path, 200), at_hand, len(answer.body)
            receive = _replayed(message, receive)
        status, answered, sent_bytes = 500, False, 0

        async def send_with_trace(message: Message) -> None:
            nonlocal status, answered, sent_bytes
            if message["type"] == "http.response.start":
                answered = True
                status = message["status"]
                own = [(b"traceparent", request.traceparent)]
                if STANDING in scope:
                    own += standing_headers(scope[STANDING])
                message["headers"] = [*message.get("headers", ()), *own]
            elif scope["method"] != "HEAD":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        token = _not_sampled(request)
        try:
            await self._app(scope, receive, send_with_trace)
        except Exception:
            if not answered:
                raise
            # Starlette raises again what it has answered and logged as a defect: it counts like any other answer.
        finally:
            if token is not None:
                context.detach(token)
        return Kind(scope["method"], _route(scope), status), 0, sent_bytes

    async def _fetch(self, path: str, body: bytes, request: RequestTrace) -> quick.QuickAnswer | None:
        token = _not_sampled(request)
        try:
            return await self.quick_way.fetch(path, body)
        finally:
            if token is not None:
                context.detach(token)


class _Held:
    """Holds the end of an answer back until it may leave; of most answers, that is all of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("more_body", False):
            await self.release()
            await self._send(message)
        else:
            self._messages.append(message)

    async def release(self) -> None:
        messages, self._messages = self._messages, []
        for message in messages:
            await self._send(message)


def _not_sampled(request: RequestTrace) -> Token[context.Context] | None:
    """What is done for a request that is not traced is no trace of its own either; a traced one's span is there."""
    return None if request.sampled else context.attach(request.context())


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
            "url.path": redacted(path),
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
