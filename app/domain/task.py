"""A recalculation as its requester sees it."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class TaskState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Task(BaseModel):
    """Progress is `done` of `total` price sheets looked at, of which `changed` got a new version."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    state: TaskState
    done: int = Field(ge=0)
    total: int | None = Field(None, ge=0, description="Unknown until a worker has counted.")
    changed: int = Field(0, ge=0)
    error: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
