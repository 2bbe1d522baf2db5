"""What the commands of `pricing dlq` are told: which letters."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import fail

if TYPE_CHECKING:
    from app.domain.dead_letter import Wanted

Json = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Only those with this in their reason.")]
Type = Annotated[str, typer.Option(metavar="TYPE", help="Only those about events of this type, such as cost.changed.")]
Since = Annotated[
    str, typer.Option(metavar="WHEN", help="Only those set aside since then: 30m, 2h, 7d ago, or an ISO 8601 time.")
]
Until = Annotated[str, typer.Option(metavar="WHEN", help="Only those set aside before then.")]
All = Annotated[bool, typer.Option("--all", help="All of them, or all that the filters leave.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="LETTER", help="Their ids, from `pricing dlq list`.")]

_FILTERS = {"reason": Reason, "type": Type, "since": Since, "until": Until}
_AGO = re.compile(r"(\d+)\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LETTER = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each filter in the place of its `filters`."""

    @wraps(command)
    def with_options(*, reason: str, type: str, since: str, until: str, **others: Any) -> None:
        command(filters=_wanted(reason, type, since, until), **others)

    options = [Parameter(name, Parameter.KEYWORD_ONLY, default="", annotation=of) for name, of in _FILTERS.items()]
    own = [each for each in signature(command).parameters.values() if each.name != "filters"]
    with_options.__signature__ = Signature([*own, *options])  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in [*own, *options]}
    return with_options


def _wanted(reason: str, type_: str, since: str, until: str) -> "Wanted":
    from app.domain.dead_letter import Wanted
    from app.domain.events import EventType

    if type_ and type_ not in list(EventType):
        fail(f"--type {type_}: the types are {', '.join(EventType)}.")
    return Wanted(
        reason, EventType(type_) if type_ else None, instant_ms("--since", since) or 0, instant_ms("--until", until)
    )


def instant_ms(option: str, when: str) -> int | None:
    """An instant as ms since 1970: so long ago, or a time; without an offset it is local."""
    if not when:
        return None
    ago = _AGO.fullmatch(when.strip())
    try:
        if ago:
            instant = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            instant = datetime.fromisoformat(when).astimezone(UTC)
        return max(0, int(instant.timestamp() * 1000))
    except (ValueError, OverflowError):
        fail(f"{option} {when}: give a duration such as 30m, 2h or 7d, or a time such as 2026-11-22T08:00:00Z.")


def means_all(letter_ids: Sequence[str] | None, everything: bool, filters: "Wanted") -> bool:
    """Whether --all was said, and not letters named; ends the program where neither or both."""
    from app.domain.dead_letter import Wanted

    if bool(letter_ids) == everything:
        fail("Name the letters, or say --all.")
    if letter_ids and filters != Wanted():
        fail("Filters go with --all.")
    return everything


def checked(letter_ids: Sequence[str]) -> list[str]:
    """Each once; ends the program where one is no letter's id."""
    for letter_id in letter_ids:
        if not _LETTER.fullmatch(letter_id):
            fail(f"{letter_id} is no dead letter's id: those look like 1763781600000-0.")
    return list(dict.fromkeys(letter_ids))
