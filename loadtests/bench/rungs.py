"""The ladder: the service's own parts, one more on each rung, each as an application.

What a rung cannot answer from memory goes to the service's endpoint, so each fills its near cache as the service
does. The last rung, the request middleware, is the service.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import quick
from app.bootstrap import open_api_resources
from app.main import create_api, create_app
from app.observability.requests import RequestLog
from app.observability.tracing import begin_request_trace
from app.settings import Settings
from loadtests.bench import peers

RUNGS = {
    "nothing": "a constant under the same server",
    "decode": "+ the body taken, decoded and validated",
    "answer": "+ the price found in the near cache, its answer sent",
    "trace": "+ the trace continued or begun, traceparent in the answer",
    "durations": "+ the span if sampled, durations and counts",
    "whole": "+ access records: the service",
}


def nothing() -> ASGIApp:
    return peers.ceiling()


def decode() -> ASGIApp:
    constant = peers.ceiling()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            message = await receive()
            quick.decode_request(message["body"])
        await constant(scope, receive, send)

    return app


def answer() -> ASGIApp:
    return _answering(with_trace=False)


def trace() -> ASGIApp:
    return _answering(with_trace=True)


def durations() -> ASGIApp:
    return create_app(Settings(log_level="warning"))


def whole() -> ASGIApp:
    return create_app()


def _answering(with_trace: bool) -> ASGIApp:
    settings = Settings(log_level="warning")
    resources = open_api_resources(settings)
    api = create_api(settings, resources, RequestLog("bench", lines=False))
    quick_way = quick.QuickWay(resources.near, resources.reader.bring)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await api(scope, receive, send)
            return
        traceparent = None
        if with_trace:
            traceparent = begin_request_trace(scope["headers"], settings.trace_sample_ratio).traceparent
        path = scope["path"]
        if not (quick_way.serves(path) and scope["method"] == "POST" and quick.JSON in scope["headers"]):
            await api(scope, receive, send)
            return
        message = await receive()
        found = quick_way.answer(path, message["body"]) or await quick_way.fetch(path, message["body"])
        if found is None:

            async def again() -> dict:
                return message

            await api(scope, again, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(found.body))]
        if traceparent is not None:
            headers.append((b"traceparent", traceparent))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": found.body})

    return app
