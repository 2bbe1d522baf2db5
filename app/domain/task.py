"""A recalculation: as its requester sees it, and as the parts that workers share."""

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from app.domain.columns import AFTER_ALL, RowKey, Table
from app.domain.rows import RowScope, SignalChange

MOST_PARTS = 16
"""More would bring no more workers together than a machine has, and cost a hint and a lock each."""


EVENT_CAUSE, IMPORT_CAUSE = "event:", "import:"
"""What a task's cause begins with; the event's id, or the import's name, follows."""


class TaskState(StrEnum):
    QUEUED = "queued"
    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class Task(BaseModel):
    """Progress is `done` of `total` price sheets looked at, of which `changed` got a new version."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    state: TaskState = Field(description="waiting: the same work is running already; this one begins when it ends.")
    joined: str | None = Field(
        None, description="The task that does this work, where one for the same had not begun yet; progress is its."
    )
    event_id: str | None = Field(None, description="The event that asked for it; null for an import.")
    done: int = Field(ge=0)
    total: int | None = Field(None, ge=0, description="Unknown until a worker has counted.")
    changed: int = Field(0, ge=0)
    rate: float | None = Field(None, description="Price sheets per second, of late; once ended, on the whole.")
    eta_seconds: float | None = Field(None, description="Time that is left, at that rate.")
    expected_end: datetime | None = None
    parts: int = Field(0, ge=0, description="Slices that workers share; 0 until it begins.")
    parts_succeeded: int = Field(0, ge=0)
    parts_failed: int = Field(0, ge=0, description="Given up after too many attempts; the other parts go on.")
    error: str | None = Field(None, description="Of a part that failed.")
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    updated_at: datetime | None = None


class Assignment(NamedTuple):
    """What a worker does in a turn at a part: the rows of the scopes with after < key <= until. Up to `stored`, sheets
    may be stored that nobody cached. `attempts` counts the turns, this one included, that have not brought it further,
    `error` is the last of theirs; `most_change` says that most of what the task has looked at so far did change."""

    cause: str
    scopes: list[RowScope]
    signal: SignalChange | None
    after: RowKey
    stored: RowKey
    until: RowKey
    attempts: int
    error: str | None
    most_change: bool


class Batch(NamedTuple):
    """What was looked at in one transaction, up to and including the row `last`; `ended`: nothing comes after it."""

    done: int
    changed: int
    last: RowKey
    ended: bool


def slices(sample: Table, total: int, rows: int) -> list[RowKey]:
    """Where each of a task's parts ends, so that they have about as many rows each, about `rows`; `sample` has the
    keys of `total` rows at equal distances."""
    count = min(MOST_PARTS, -(-total // rows), len(sample) + 1)
    return [*_inner_ends(sample, count), AFTER_ALL]


def _inner_ends(sample: Table, count: int) -> Iterator[RowKey]:
    for n in range(1, count):
        product_key, location_key = sample[n * len(sample) // count].item()
        yield product_key, location_key


def task_scope(task_id: str, part: int | None) -> str:
    """What is locked to work on a part, and hinted; None: the task's beginning."""
    return f"task:{task_id}" if part is None else f"task:{task_id}:{part}"
