"""What `pricing top` sees: one look at the API and at Redis. What does not answer is said, and the rest is shown."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

import httpx
import redis

from app.adapters.breakers import Breakers
from app.adapters.event_accounts import EventAccounts
from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.inbox import Inboxes
from app.adapters.locks import Locks
from app.adapters.redis_clients import make_redis
from app.adapters.task_names import BOUNDARY_SCOPE
from app.domain.task import ENDED, Task, task_scope
from app.errors import Unavailable
from app.local.addresses import api_url
from app.local.running import key_headers
from app.observability.scrape import Scrape, parse
from app.services.ports import Tally
from app.settings import Settings

LATEST_TASKS, MOST_TASKS = 100, 8
"""So many are asked for, to show those that have not ended."""


@dataclass(frozen=True)
class Queues:
    """What Redis knows of events and of who works. `unread` and `pending` are of the group that applies events."""

    length: int
    unread: int
    pending: int
    oldest_s: float
    dead_letters: int
    breakers: dict[str, Tally]
    locks: list[str]


@dataclass(frozen=True)
class Look:
    """`counted` is what all processes have counted, `lately` what of it in the last `seconds`; None where unknown."""

    url: str
    at: datetime
    counted: Scrape | None = None
    lately: Scrape | None = None
    seconds: float = 0.0
    queues: Queues | None = None
    tasks: list[Task] | None = None
    silent: list[str] = field(default_factory=list)
    """What does not answer."""

    @property
    def anything(self) -> bool:
        return self.counted is not None or self.queues is not None


class Looks:
    """One after the other; each knows the one before."""

    def __init__(self, settings: Settings, broker_url: str) -> None:
        self.url = api_url(settings)
        self._redis = make_redis(broker_url, settings.store_timeout_s)
        names = Names(settings.event_stream, settings.event_channel, settings.event_group, settings.dead_letter_stream)
        self._log, self._accounts = EventLog(self._redis, names), EventAccounts(self._redis, names)
        self._inboxes, self._breakers = Inboxes(self._redis, names), Breakers(self._redis)
        self._locks = Locks(self._redis, settings.lock_ttl_s)
        headers = key_headers(settings, self.url)
        self._http = httpx.Client(base_url=self.url, timeout=settings.store_timeout_s, headers=headers)
        self._before: tuple[Scrape, float] | None = None

    def __enter__(self) -> "Looks":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()
        self._redis.close()

    def look(self) -> Look:
        silent: list[str] = []
        counted = lately = tasks = queues = None
        seconds = 0.0
        try:
            counted = parse(self._get("/metrics").text)
            lately, seconds = self._since_before(counted)
            tasks = self._tasks()
        except (httpx.HTTPError, ValueError) as error:
            silent.append(f"{self.url} does not answer: {error}")
        try:
            queues = self._queues(tasks or [])
        except (Unavailable, redis.ResponseError) as error:
            silent.append(str(error))
        return Look(self.url, datetime.now().astimezone(), counted, lately, seconds, queues, tasks, silent)

    def _since_before(self, counted: Scrape) -> tuple[Scrape | None, float]:
        before, self._before = self._before, (counted, time.monotonic())
        if before is None:
            return None, 0.0
        return counted.since(before[0]), self._before[1] - before[1]

    def _tasks(self) -> list[Task]:
        answer = self._get("/api/v1/tasks", limit=LATEST_TASKS)
        tasks = map(Task.model_validate, answer.json()["items"])
        return [task for task in tasks if task.state not in ENDED][:MOST_TASKS]

    def _get(self, path: str, **params: Any) -> httpx.Response:
        return self._http.get(path, params=params).raise_for_status()

    def _queues(self, tasks: list[Task]) -> Queues:
        accounts, backlog = self._accounts.read(), self._log.backlog()
        parts = [task_scope(task.task_id, part) for task in tasks for part in (None, *range(task.parts))]
        scopes = [*self._inboxes.waiting(), BOUNDARY_SCOPE, *parts]
        return Queues(
            length=accounts.length,
            unread=backlog.unread,
            pending=backlog.pending,
            oldest_s=backlog.oldest_s,
            dead_letters=self._log.dead_letters(),
            breakers=self._breakers.tallies(),
            locks=self._locks.held(scopes),
        )
