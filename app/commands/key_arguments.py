"""What the commands of `pricing keys` are told: which key, until when, how often."""

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import fail

if TYPE_CHECKING:
    from app.domain.api_key import RateLimit

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, the part after pk_.")]

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "day": 86_400}
_DURATION = re.compile(r"([0-9]{1,6})\s*(s|m|min|h|d)")
_RATE = re.compile(r"([0-9]{1,12})\s*/\s*(s|m|min|h|d|day)")


def duration_s(option: str, given: str) -> int:
    """A duration in seconds; ends the program where it is none."""
    match = _DURATION.fullmatch(given.strip())
    if match is None:
        fail(f"{option} {given}: give a duration such as 30m, 2h or 7d.")
    return int(match[1]) * _UNITS_S[match[2]]


def at(option: str, given: str | None) -> datetime | None:
    """An instant: so long from now, or a time; without an offset it is local."""
    if given is None:
        return None
    try:
        if _DURATION.fullmatch(given.strip()):
            return datetime.now(UTC) + timedelta(seconds=duration_s(option, given))
        return datetime.fromisoformat(given).astimezone(UTC)
    except (ValueError, OverflowError):
        fail(f"{option} {given}: give a duration such as 12h or 90d, or a time such as 2027-01-31T00:00:00Z.")


def rate(given: str | None) -> "RateLimit | None":
    """So many requests in so long."""
    from pydantic import ValidationError

    from app.domain.api_key import RateLimit

    if given is None:
        return None
    match = _RATE.fullmatch(given.strip())
    try:
        if match is not None:
            return RateLimit(requests=int(match[1]), window_s=_UNITS_S[match[2]])
    except ValidationError:
        pass
    fail(f"--limit {given}: give a rate such as 50/s, 6000/min or 100000/h.")
