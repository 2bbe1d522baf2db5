"""What was used: answered requests by key, user, route and status, as bills are made of them."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, islice
from typing import Annotated, Literal, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from app.api.answers import answer
from app.api.deps import Deps
from app.api.guards import GuardedRoute, needs
from app.api.problems import documented
from app.api.schemas import UsageAnswer
from app.domain.api_key import Scope
from app.domain.usage import By, Per, UsageQuestion, UsageRow, Used
from app.errors import InvalidInput
from app.services import usage
from app.services.usage import Completeness

router = APIRouter(prefix="/api/v1/usage", tags=["usage"], route_class=GuardedRoute)

MOST_ROWS = 10_000
FIRST_ROWS = 1_000
"""Read before a table begins, so that what fails until then is an error and not half a table."""

T = TypeVar("T")

Only = Annotated[str | None, Query(max_length=512)]


@router.get(
    "",
    dependencies=[needs(Scope.ADMIN)],
    response_model=UsageAnswer,
    responses=documented(503)
    | {200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "JSON, or all rows as CSV"}},
    summary="What was used",
)
async def get_usage(
    request: Request,
    deps: Deps,
    from_at: Annotated[
        datetime | None,
        Query(alias="from", description="UTC where it names no zone. Default: the first of this month."),
    ] = None,
    until: Annotated[datetime | None, Query(description="Not included. Default: now.")] = None,
    per: Annotated[Per, Query(description="Periods begin by UTC.")] = Per.DAY,
    by: Annotated[list[str] | None, Query(description=f"Any of {', '.join(By)}; with commas, or repeated.")] = None,
    key_id: Only = None,
    user_id: Only = None,
    route: Only = None,
    method: Only = None,
    status: Annotated[int | None, Query(ge=100, le=599)] = None,
    skip: Annotated[int, Query(ge=0, le=10_000_000, description="Rows of earlier pages.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="Of JSON; CSV has all rows.")] = 1_000,
    format: Annotated[Literal["json", "csv"] | None, Query(description="Or by Accept: text/csv.")] = None,
) -> Response:
    """Counted from the exact record of each answered request, over 400 days at most. Every record that was in the
    stream before `complete_until` is counted; `missing` requests of that time were answered, and have no record
    (yet). It needs the scope `admin`, since it tells of every key and user."""
    now = datetime.now(UTC)
    given = {By.KEY: key_id, By.USER: user_id, By.ROUTE: route, By.METHOD: method, By.STATUS: status}
    only = {name: str(value) for name, value in given.items() if value is not None}
    question = UsageQuestion(
        _utc(from_at) or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
        _utc(until) or now + timedelta(minutes=1),  # clocks differ
        per,
        _named(by or []),
        only,
    )
    if format == "csv" or (format is None and request.headers.get("accept", "").startswith("text/csv")):
        ask = partial(usage.stream, deps.usage_store, deps.record_backlog, question)
        completeness, rows = await _wait(ask)
        lines = _csv(question, rows)
        first = await _wait(lambda: "".join(islice(lines, FIRST_ROWS)))
        headers = {
            "X-Complete-Until": _told(completeness.complete_until) or "",
            "X-Missing-Requests": str(completeness.missing),
            "Content-Disposition": 'attachment; filename="usage.csv"',
        }
        return StreamingResponse(chain([first], _blocks(lines)), headers=headers, media_type="text/csv; charset=utf-8")
    found = await _wait(partial(usage.page, deps.usage_store, deps.record_backlog, question, skip, limit + 1))
    return answer(
        {
            "from": _told(question.from_at),
            "until": _told(question.until_at),
            "per": per,
            "by": question.by,
            **_said(found.completeness),
            "total": found.total._asdict(),
            "items": [_item(question, row) for row in found.rows[:limit]],
            "next_skip": skip + limit if len(found.rows) > limit else None,
        }
    )


def _named(by: list[str]) -> tuple[By, ...]:
    names = [name for part in by for name in part.split(",") if name]
    unknown = [name for name in names if name not in set(By)]
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is none of {', '.join(By)}", "by")
    return tuple(By(name) for name in names)


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _told(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _said(completeness: Completeness) -> dict[str, object]:
    return {
        "complete_until": _told(completeness.complete_until),
        "missing": completeness.missing,
        "gaps": completeness.gaps,
    }


def _item(question: UsageQuestion, row: UsageRow) -> dict[str, object]:
    values = zip(question.by, row.values, strict=True)
    return {"period": _told(row.period), **{by.value: value for by, value in values}, **row.used._asdict()}


def _csv(question: UsageQuestion, rows: Iterable[UsageRow]) -> Iterator[str]:
    """Lines, each when it is needed."""
    yield _line(["period", *question.by, *Used._fields])
    for row in rows:
        yield _line([_told(row.period) or "", *row.values, *row.used])


def _line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    while block := "".join(islice(lines, FIRST_ROWS)):
        yield block


async def _wait(work: Callable[[], T]) -> T:
    """Counting may take long: the store that it asks has patience, and few connections, so that few do it at once."""
    return await anyio.to_thread.run_sync(work)
