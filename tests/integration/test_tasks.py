"""What tasks do with errors, in a real worker: what may pass is tried again later, and breakers hold back what is of no
use."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import celery
import pytest
import redis
from celery.contrib.testing.worker import start_worker
from structlog.testing import capture_logs

from app.adapters.breakers import APPLYING, BOUNDARIES, CACHE, POSTGRESQL, WORK_LIMITS, Breakers
from app.adapters.locks import Locks
from app.adapters.store import Store
from app.adapters.task_names import EVENTS_QUEUE, JOBS_QUEUE
from app.adapters.task_queue import HINTED_SCOPE, make_celery
from app.bootstrap import Resources
from app.domain.events import Event, EventType
from app.errors import Conflict, InvalidInput, LockLost, Overloaded, PricingError, Unavailable
from app.services.ports import BreakerState
from app.settings import Settings
from tests.support.resources import opened
from tests.support.system import free_port
from tests.support.waiting import eventually
from workers import tasks
from workers.base import LONGEST_WAIT_S, PricingTask

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Worker:
    """Runs the task `work`, which does what `does` says; `runs` counts."""

    def __init__(self, application: celery.Celery, valkey: redis.Redis) -> None:
        self._application, self._valkey = application, valkey
        self.breakers = Breakers(valkey)
        self.does: Callable[[], object] = lambda: None
        self.runs = 0
        self._again: dict[str, dict[str, Any]] = {}
        celery.signals.before_task_publish.connect(self._queued)  # for as long as it lives

    def work(self) -> None:
        self.runs += 1
        self.does()

    def fails_with(self, error: Exception) -> None:
        def fail() -> None:
            raise error

        self.does = fail

    def start(self, name: str = "work", retries: int = 0, **headers: str) -> None:
        """Queue the task, and wait until it was taken and has ended, or waits to be tried again."""
        ended = threading.Event()
        with_end = celery.signals.task_postrun.connect(lambda **_: ended.set(), weak=False)
        self._application.send_task(name, retries=retries, headers={"traceparent": TRACEPARENT} | headers)
        assert ended.wait(20)
        celery.signals.task_postrun.disconnect(with_end)

    def later(self) -> list[dict[str, Any]]:
        """The headers of the tasks that are to be tried again, as they were queued last."""
        return list(self._again.values())

    def _queued(self, headers: dict[str, Any], **_: Any) -> None:
        if headers["eta"]:
            self._again[headers["id"]] = headers

    def open(self, breaker: str) -> None:
        assert self.breakers.note(breaker, bad=100) is BreakerState.OPEN

    def stays_open(self, breaker: str) -> None:
        """However slow this machine is."""
        self._valkey.hincrby(f"breaker:{breaker}", "until", 600_000)

    def time_passes(self) -> None:
        for name in (POSTGRESQL, CACHE, APPLYING, BOUNDARIES):
            if self._valkey.exists(f"breaker:{name}"):
                self._valkey.hset(f"breaker:{name}", "until", 1)


@pytest.fixture
def settings(database_url: str, valkey_url: str) -> Settings:
    return Settings(database_url=database_url, cache_url=valkey_url)


@contextmanager
def running(settings: Settings, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    assert settings.cache_url is not None
    application = make_celery(settings.cache_url.get_secret_value())
    worker = Worker(application, valkey)

    def work() -> None:
        worker.work()

    for name, own, tells in (("work", BOUNDARIES, False), ("telling work", APPLYING, True)):
        needed = (POSTGRESQL, CACHE, own)
        application.task(work, name=name, base=PricingTask, breakers=needed, tells=tells, shared=False)
    with opened(settings) as resources:
        monkeypatch.setattr("workers.base.resources", lambda: resources)
        with start_worker(application, perform_ping_check=False, shutdown_timeout=30):
            yield worker


@pytest.fixture
def worker(settings: Settings, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    with running(settings, valkey, monkeypatch) as worker:
        yield worker


def seconds_until(eta: str) -> float:
    moment = datetime.fromisoformat(eta)
    return (moment - datetime.now(moment.tzinfo)).total_seconds()


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("away", 100), Overloaded("full", 100), LockLost("lost"), Conflict("other"), ConnectionError("cut"),
        TimeoutError("slow"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_may_pass_is_tried_again_after_what_was_asked_for(worker: Worker, error: PricingError) -> None:
    worker.fails_with(error)
    worker.start()
    (again,) = eventually(worker.later)
    asked_s = getattr(error, "retry_after_s", 0)
    assert asked_s - 20 < seconds_until(again["eta"]) <= asked_s + 1
    assert again["retries"] >= 1, "with full jitter the next try may have come, and failed, at once"
    assert again["traceparent"] == TRACEPARENT


@pytest.mark.parametrize("retries", [1, 3, 7])
def test_waits_are_jittered_and_bounded(worker: Worker, retries: int) -> None:
    worker.fails_with(Unavailable("away", 100))
    bound_s = min(2**retries, LONGEST_WAIT_S)
    for _ in range(6):
        worker.start(retries=retries)
    waits = [seconds_until(again["eta"]) for again in eventually(lambda: len(worker.later()) == 6 and worker.later())]
    assert all(100 - 20 < wait <= 100 + bound_s for wait in waits), waits
    assert len(set(waits)) == 6


def test_what_a_worker_has_in_hand_goes_back_to_the_front_of_the_queue_when_it_leaves(
    settings: Settings, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(settings, valkey, monkeypatch) as worker:
        worker.fails_with(Unavailable("away", 100))
        for _ in range(2):
            worker.start()
        eventually(lambda: len(worker.later()) == 2 and not valkey.exists(EVENTS_QUEUE))
        assert {key.decode() for key in valkey.keys("*unack*")} == set(), "what is in hand is noted in the broker"
    queued: Any = valkey.lrange(EVENTS_QUEUE, 0, -1)
    taken_next = [json.loads(message)["headers"]["id"] for message in reversed(queued)]
    assert taken_next == [again["id"] for again in worker.later()]


def test_after_the_last_time_it_is_given_up(worker: Worker) -> None:
    """Which is a failure, not one more try."""
    worker.fails_with(Unavailable("away", 100))
    with capture_logs() as lines:
        worker.start(retries=PricingTask.max_retries - 1)
        worker.start(retries=PricingTask.max_retries)
    assert worker.runs == 2
    assert [line["outcome"] for line in lines if line["event"] == "task"] == ["retried", "failed"]
    eventually(lambda: [again["retries"] for again in worker.later()] == [PricingTask.max_retries])


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), InvalidInput("wrong")], ids=["a bug", "invalid"])
def test_what_cannot_pass_fails_at_once_and_counts_against_the_work(worker: Worker, error: Exception) -> None:
    worker.fails_with(error)
    worker.start()
    assert not worker.later()
    tallies = worker.breakers.tallies()
    assert [tallies[name].bad for name in (POSTGRESQL, CACHE, BOUNDARIES)] == [0, 0, 1]
    assert tallies[BOUNDARIES].state is BreakerState.CLOSED


def test_a_store_that_is_away_opens_its_own_breaker_and_nothing_more_is_begun(worker: Worker) -> None:
    worker.fails_with(Unavailable("away", 100, upstream="postgresql"))
    for _ in range(5):
        worker.start()
    tallies = worker.breakers.tallies()
    assert (tallies[POSTGRESQL].state, tallies[POSTGRESQL].reason) == (BreakerState.OPEN, "away")
    assert tallies[CACHE].bad == 0
    worker.stays_open(POSTGRESQL)
    worker.start()
    assert worker.runs == 5


def test_work_that_fails_for_everybody_is_held_back(worker: Worker) -> None:
    worker.fails_with(ZeroDivisionError("bug"))
    worker.breakers.note(BOUNDARIES, bad=WORK_LIMITS.failures - 1)
    worker.start()
    assert worker.breakers.tallies()[BOUNDARIES].state is BreakerState.OPEN
    worker.stays_open(BOUNDARIES)
    worker.start()
    assert worker.runs == 1
    worker.start("telling work")
    assert worker.runs == 2, "other work goes on"


def test_work_that_is_held_back_leaves_no_hint_that_keeps_the_next_one_waiting(
    worker: Worker, valkey: redis.Redis
) -> None:
    locks = Locks(valkey, 30)
    assert locks.hint("a", 600)
    worker.open(POSTGRESQL)
    worker.stays_open(POSTGRESQL)
    worker.start(**{HINTED_SCOPE: "a"})
    assert worker.runs == 0
    assert locks.idle(["a"]) == ["a"]


def test_a_task_knows_whose_hint_it_is(settings: Settings, valkey: redis.Redis) -> None:
    with opened(settings) as resources:
        resources.queue.apply_events("a")
        resources.queue.reprice_due()
        resources.queue.recalculate("t", 3)
    queued: Any = [message for queue in (EVENTS_QUEUE, JOBS_QUEUE) for message in valkey.lrange(queue, 0, -1)]
    scopes = {json.loads(message)["headers"][HINTED_SCOPE] for message in queued}
    assert scopes == {key.decode().removeprefix("hint:") for key in valkey.keys("hint:*")}
    assert "a" in scopes


def test_a_try_that_succeeds_closes_the_breakers(worker: Worker) -> None:
    worker.open(POSTGRESQL)
    worker.open(BOUNDARIES)
    worker.time_passes()
    worker.start()
    assert worker.runs == 1
    assert {tally.state for tally in worker.breakers.tallies().values()} == {BreakerState.CLOSED}


def test_work_that_tells_how_it_fared_is_not_taken_for_good_because_it_ended(worker: Worker) -> None:
    """It may have found nothing to do."""
    worker.open(POSTGRESQL)
    worker.open(APPLYING)
    worker.time_passes()
    worker.start("telling work")
    tallies = worker.breakers.tallies()
    assert (tallies[POSTGRESQL].state, tallies[APPLYING].state) == (BreakerState.CLOSED, BreakerState.HALF_OPEN)
    worker.does = lambda: worker.breakers.note(APPLYING, good=1)
    worker.start("telling work")
    assert worker.breakers.tallies()[APPLYING].state is BreakerState.CLOSED


def test_a_try_begins_no_work_while_a_store_does_not_answer(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"postgresql://postgres@127.0.0.1:{free_port()}/nothing"
    with opened(Settings(database_url=nowhere, cache_url=settings.cache_url)) as resources:
        monkeypatch.setattr("workers.base.resources", lambda: resources)
        worker.open(POSTGRESQL)
        worker.time_passes()
        worker.start()
    assert worker.runs == 0
    tally = worker.breakers.tallies()[POSTGRESQL]
    assert (tally.state, "refused" in tally.reason) == (BreakerState.OPEN, True)


@pytest.fixture
def resources(database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Resources]:
    with opened(Settings(database_url=database_url, cache_url=valkey_url)) as resources:
        monkeypatch.setattr("workers.tasks.resources", lambda: resources)
        resources.log.ensure_group()
        yield resources


def arrive(resources: Resources, subject: str, events: int = 1) -> str:
    """So many new costs of one product, in the inbox of their scope, whose name this gives."""
    for n in range(events):
        event = Event(
            id=f"{subject}-{n}", type=EventType.COST_CHANGED, subject=subject, location="NY", data={"amount": 1}
        )
        resources.publisher.publish(event)
    _, filled = resources.log.receive("me", events, "hint")
    (scope,) = filled
    return scope


def test_a_task_ends_with_the_batch_that_opens_the_breaker(resources: Resources, valkey: redis.Redis) -> None:
    scope = arrive(resources, "nobody", tasks.BATCH + 1)
    tasks.apply_events(scope)
    assert valkey.zcard(f"inbox:{scope}") == 1
    assert resources.breakers.tallies()[APPLYING].state is BreakerState.OPEN
    assert valkey.llen(EVENTS_QUEUE) == 0, "nobody is sent before the breaker lets somebody through"


def test_suspects_that_fail_once_more_keep_nothing_in_their_inbox_from_the_same_try(
    store: Store, resources: Resources, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their turn comes first, as they could be tried before it came, and each is tried alone by then."""
    monkeypatch.setattr(tasks, "TURN_S", 60)
    scope = arrive(resources, "nobody-1", WORK_LIMITS.failures)
    tasks.apply_events(scope)
    noted = valkey.hgetall("events:failures")
    failures = {stream_id: json.dumps({**json.loads(failure), "attempts": 3}) for stream_id, failure in noted.items()}
    valkey.hset("events:failures", mapping=failures)
    valkey.zadd(f"suspects:{scope}", dict.fromkeys(failures, 1))
    assert arrive(resources, "P-1") == scope
    valkey.hset(f"breaker:{APPLYING}", "until", 1)
    assert resources.breakers.let_through([APPLYING]) is BreakerState.HALF_OPEN
    tasks.apply_events(scope)
    assert resources.breakers.tallies()[APPLYING].state is BreakerState.CLOSED
    assert valkey.zcard(f"inbox:{scope}") == 0
