"""Everything the service raises on purpose.

    PricingError
    ├── InvalidInput          the caller's mistake; never retried
    │   ├── NotFound            an unknown product, location, rule or task
    │   ├── ScopeTaken          a policy where another one is
    │   └── MalformedEvent      a message that can never be applied
    ├── Refused               whoever asks may not
    │   ├── Unauthenticated     nobody knows who it is
    │   └── Forbidden           it is known, and has no right to this
    ├── Unavailable           something we need is away; retry later
    ├── Overloaded            we are full; retry later
    │   └── RateLimited         too often; retry later
    └── Conflict              somebody else was first
        ├── AlreadyExists       a rule with this id is there
        ├── TaskEnded           too late to cancel or resume it
        ├── NotReplayable       a dead letter that holds no event
        └── LockLost            the lock that guarded this run is gone

What each means to the three who read it:

    base           API                  worker                     listener
    InvalidInput   4xx                  fail, no retry             dead letter, acknowledge
    Refused        401, 403             -                          -
    Unavailable    503 + Retry-After    retry, full jitter         leave pending
    Overloaded     503 + Retry-After    retry later                pause reading
    Conflict       409                  retry: look again          -
    anything else  500, logged once     fail                       dead letter after N deliveries
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class PricingError(Exception):
    """Base of the tree. `code` is stable and part of the API's contract."""

    code: ClassVar[str] = "internal_error"


class InvalidInput(PricingError):
    """`path` is where in the input, such as promotions.0.value; empty where that is not known."""

    code = "invalid_input"

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@contextmanager
def within(path: str) -> Iterator[None]:
    """What `InvalidInput` is raised in here concerns this part of the input."""
    try:
        yield
    except InvalidInput as error:
        error.path = f"{path}.{error.path}" if error.path else path
        raise


class NotFound(InvalidInput):
    code = "not_found"


class ScopeTaken(InvalidInput):
    """Unlike other refusals, this one passes once the other policy is removed."""


class MalformedEvent(InvalidInput):
    code = "malformed_event"


class Refused(PricingError):
    """`reason` is one of few words, to be counted by."""

    reason: ClassVar[str]


class Unauthenticated(Refused):
    """`key_id` is of the key that was shown, where that is known and no longer good."""

    code = reason = "unauthenticated"

    def __init__(self, message: str, key_id: str = "") -> None:
        super().__init__(message)
        self.key_id = key_id


class Forbidden(Refused):
    code = reason = "forbidden"


class Unavailable(PricingError):
    """`retry_after_s` is how long the caller should wait, in seconds; `upstream` names what is away, if known:
    postgresql, cache, broker."""

    code = "unavailable"

    def __init__(self, message: str, retry_after_s: int = 1, *, upstream: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_s, self.upstream = retry_after_s, upstream


class Overloaded(PricingError):
    """`retry_after_s` is how long the caller should wait, in seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    code = "rate_limited"


class Conflict(PricingError):
    code = "conflict"


class AlreadyExists(Conflict):
    code = "already_exists"


class TaskEnded(Conflict):
    code = "task_ended"


class NotReplayable(Conflict):
    code = "not_replayable"


class LockLost(Conflict):
    code = "lock_lost"


TRANSIENT = (Unavailable, Overloaded, Conflict, ConnectionError, TimeoutError)
"""What may pass by itself, to be tried again; a defect or a mistake never does."""
