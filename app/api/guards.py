"""Who may do what: declared at each route by `dependencies=[needs(…)]`, checked before anything of a request is read.

    @router.post("/policies", dependencies=[needs(Scope.ADMIN)])

Routers have the class `GuardedRoute`, which refuses to be made without such a declaration, and the application refuses
to be made with any other route: what nobody thought of is not open, it does not start.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from starlette.routing import BaseRoute

from app.adapters.rate_limits import LimitReached, Standing
from app.bootstrap import ApiResources
from app.domain.api_key import ANONYMOUS, HEADER, Caller, Scope
from app.errors import Forbidden, PricingError, Refused, Unauthenticated
from app.observability import metrics

CALLER = "pricing.caller"
"""Where in a request's scope is who calls: a `Caller`, or the error that says why nobody knows."""

STANDING = "pricing.standing"
"""Where in a request's scope is how its key stands, where that has a limit."""

_described = APIKeyHeader(
    name=HEADER,
    scheme_name="ApiKey",
    description="`pricing keys create`, or POST /api/v1/keys. Reading needs one where PRICING_OPEN_READING is false.",
    auto_error=False,
)

Headers = list[tuple[bytes, bytes]]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def needs(scope: Scope) -> Any:
    """For callers with this scope alone; `READ` is everybody's where reading is open."""
    return params.Security(_described, scopes=[scope])


def anyone() -> Any:
    """For everybody, with any key or none: what is asked by whoever runs the service."""
    return params.Depends(_anyone)


async def _anyone() -> None:
    """Says that this was thought of."""


class GuardedRoute(APIRoute):
    """Raises ValueError where it is not declared who may use it."""

    needed: Scope | None

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        declared = [d for d in options.get("dependencies") or () if d.dependency in (_described, _anyone)]
        if len(declared) != 1:
            raise ValueError(f"{path}: declare once who may use it: dependencies=[needs(…)] or [anyone()]")
        scopes = declared[0].scopes if isinstance(declared[0], params.Security) else ()
        self.needed = Scope(scopes[0]) if scopes else None
        if self.needed is Scope.READ:
            # Beside the key: none. Whether that is enough is a setting, and the contract is one.
            options["openapi_extra"] = {"security": [{}], **(options.get("openapi_extra") or {})}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        needed = self.needed
        if needed is None:
            return handle

        async def handle_if_allowed(request: Request) -> Response:
            await admit(request, needed)
            return await handle(request)

        return handle_if_allowed


async def admit(request: Request, needed: Scope) -> None:
    """Raises `Unauthenticated`, `Forbidden`, `RateLimited`, and `Unavailable` where nobody can tell who calls."""
    resources: ApiResources = request.app.state.resources
    caller: Caller | PricingError = request.scope[CALLER]
    if needed is Scope.READ:
        caller = resources.callers.reader(caller)
    try:
        if isinstance(caller, PricingError):
            raise caller
        if not resources.callers.may(caller, needed):
            if caller is ANONYMOUS:
                raise Unauthenticated(f"This needs an API key with the scope {needed}, in the header {HEADER}.")
            raise Forbidden(f"This needs the scope {needed}, which the API key {caller.key_id} does not have.")
        if caller.rate_limit is not None:
            request.scope[STANDING] = await resources.rate_limits.take(caller)
    except LimitReached as error:
        request.scope[STANDING] = error.standing
        metrics.requests_refused.labels("rate_limited").inc()
        raise
    except Refused as error:
        metrics.requests_refused.labels(error.reason).inc()
        raise


def caller_of(request: Request) -> str:
    """Who asked for what was done, for the log."""
    caller: Caller = request.scope[CALLER]
    return f"API key {caller.key_id}"


def standing_headers(standing: Standing) -> Headers:
    """As draft-ietf-httpapi-ratelimit-headers-11 has them."""
    limit = standing.limit
    return [
        (b"ratelimit-policy", b'"key";q=%d;w=%d' % (limit.requests, limit.window_s)),
        (b"ratelimit", b'"key";r=%d;t=%d' % (standing.left, standing.full_s)),
    ]


def check(routes: Iterable[BaseRoute]) -> None:
    """Raises ValueError where one of the routes is not guarded."""
    unguarded = [getattr(route, "path", str(route)) for route in routes if not isinstance(route, GuardedRoute)]
    if unguarded:
        raise ValueError(f"not guarded: {', '.join(unguarded)}")
