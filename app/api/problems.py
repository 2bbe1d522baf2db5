"""Errors as RFC 9457 problem documents, with a stable `code` and the trace id."""

import http
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from app.api.answers import answer
from app.domain.api_key import redacted
from app.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Overloaded,
    PricingError,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from app.observability.tracing import current_trace_id

MEDIA_TYPE = "application/problem+json"

MAX_ERRORS = 100
"""So many errors of one request are named."""

MAX_TEXT = 500

_logger = structlog.get_logger(__name__)


class FieldError(BaseModel):
    index: int | None = Field(
        None, description="Which of many events, from 0; of NDJSON, which line.", exclude_if=lambda index: index is None
    )
    path: str = Field(description="Where in the request, such as body.items.3.quantity.")
    message: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). `code` is stable; `detail` is for people and may change."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    trace_id: str | None = None
    errors: list[FieldError] = Field(default_factory=list, description=f"The first {MAX_ERRORS}.")
    error_count: int = Field(0, description="How many there are in all.")


class InvalidBody(InvalidInput):
    """A body with these errors, of so many."""

    def __init__(self, message: str, errors: Sequence[FieldError] = (), error_count: int = 0) -> None:
        super().__init__(message)
        self.errors, self.error_count = list(errors), error_count


_STATUS: list[tuple[type[PricingError], int]] = [
    (NotFound, 404),
    (InvalidInput, 422),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (Unavailable, 503),
    (RateLimited, 429),
    (Overloaded, 503),
    (AlreadyExists, 409),
    (Conflict, 409),
]

_CODES = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_input",
}

_DESCRIPTIONS = {
    400: "The body cannot be read.",
    401: "No API key was shown where one is needed, or one that is no good.",
    403: "The API key does not have the scope that this needs.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "Somebody else was first, or it exists already.",
    413: "The body is larger than the service reads.",
    415: "The body is of another media type than the service reads.",
    422: "The request is not valid; `errors` says where.",
    429: "The key's limit is reached, or this was done often enough; try again after Retry-After seconds.",
    503: "A store is away (`unavailable`) or too much waits (`overloaded`); try again after Retry-After seconds.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that may answer with these problems, besides 401, 403, 413, 422 and 429."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {
            "description": _DESCRIPTIONS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 401, 403, 413, 422, 429})
    }
    responses[401]["headers"] = {"WWW-Authenticate": {"description": "ApiKey.", "schema": {"type": "string"}}}
    for status in {429, 503} & responses.keys():
        responses[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return responses


def problem_of(error: PricingError) -> Problem:
    """The problem document of an error of ours."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    errors = []
    if isinstance(error, InvalidBody):
        return make_problem(status, error.code, str(error), error.errors, error.error_count)
    if isinstance(error, InvalidInput) and error.path:
        errors.append(FieldError(path=f"body.{error.path}", message=error.message))
    if isinstance(error, Unavailable):
        # Its text names hosts and users, which are for the log only.
        _logger.warning("unavailable", error=str(error))
        return make_problem(status, error.code, "A store is away; try again after Retry-After seconds.")
    return make_problem(status, error.code, str(error), errors)


def make_problem(
    status: int, code: str, detail: str, errors: Sequence[FieldError] = (), error_count: int | None = None
) -> Problem:
    return Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=redacted(detail),
        code=code,
        trace_id=current_trace_id(),
        errors=list(errors),
        error_count=len(errors) if error_count is None else error_count,
    )


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    response = answer(problem, problem.status, headers)
    response.headers["Content-Type"] = MEDIA_TYPE
    return response


def plain(text: str) -> str:
    """What came from the request, fit to be sent back: not endless, no secrets, and no halves of UTF-16 pairs."""
    return redacted(text)[:MAX_TEXT].encode(errors="backslashreplace").decode()


def _methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """Every method that the path of this request is served with."""
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Every error of the application, which serves these routes, leaves as a problem document."""

    @app.exception_handler(PricingError)
    async def ours(_: Request, error: PricingError) -> Response:
        headers = {}
        if retry_after := getattr(error, "retry_after_s", None):
            headers["Retry-After"] = str(retry_after)
        if isinstance(error, Unauthenticated):
            headers["WWW-Authenticate"] = 'ApiKey realm="pricing", header="X-API-Key"'
        return problem_response(problem_of(error), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        for e in error.errors():
            if e["type"] == "json_invalid":
                detail = f"The body is not JSON, from character {e['loc'][-1]} on."
                return problem_response(make_problem(400, "malformed_body", detail))
        errors = [
            FieldError(path=plain(".".join(map(str, e["loc"]))), message=plain(e["msg"]))
            for e in error.errors()[:MAX_ERRORS]
        ]
        detail = "; ".join(f"{e.path}: {e.message}" for e in errors)
        return problem_response(make_problem(422, "invalid_input", detail, errors, len(error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(routes, request))  # Starlette names those of the first route alone
        return problem_response(make_problem(error.status_code, code, str(error.detail)), headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        _logger.error("unhandled error", exc_info=error)
        detail = "The service has a defect; its log has more under this trace id."
        return problem_response(make_problem(500, "internal_error", detail))
