"""What was used: answered requests, counted from their exact records."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

LONGEST_SPAN = timedelta(days=400)


class Per(StrEnum):
    """The length of a period; each begins at a full hour, a midnight or a first of a month of UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    ALL = "all"
    """One period: all of the time that is asked for."""


class By(StrEnum):
    """What usage is told apart by."""

    KEY = "key_id"
    USER = "user_id"
    ROUTE = "route"
    METHOD = "method"
    STATUS = "status"


class UsageQuestion(NamedTuple):
    """Requests that began from `from_at` on and before `until_at`, of these values where some are given."""

    from_at: datetime
    until_at: datetime
    per: Per
    by: tuple[By, ...]
    only: Mapping[By, str]


class Used(NamedTuple):
    requests: int
    failed: int
    """Those that were answered with a 5xx."""
    sent_bytes: int
    """Of the answers' bodies."""
    latency_ms: float
    """Their mean; 0 where there is no request."""


class UsageRow(NamedTuple):
    """`values` in the order of the question's `by`; `period` is when it begins, None where there is only one."""

    period: datetime | None
    values: tuple[str, ...]
    used: Used
