"""The listener's loop: whatever it has read gets into an inbox, also where it did not hear of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
import redis

from app.adapters import event_log, inbox
from app.adapters.breakers import APPLYING
from app.adapters.event_log import Entry, EventLog
from app.adapters.event_names import Names
from app.adapters.inbox import Filled
from app.adapters.locks import Held
from app.adapters.task_names import EVENTS_QUEUE
from app.adapters.task_queue import TaskQueue, make_celery
from app.bootstrap import Resources
from app.domain.events import Event, EventType
from app.domain.scopes import scope_of
from app.errors import Unavailable
from app.settings import Settings
from listener.loop import SAMPLE, Loop
from tests.support.lossy import LossyClient
from tests.support.resources import opened
from tests.support.waiting import eventually

NAMES = Names("events", "market_events", "repricing", "events:dead")
Listening = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def lossy(valkey_url: str) -> Iterator[LossyClient]:
    lossy = LossyClient(valkey_url, repeats=False)
    yield lossy
    lossy.client.close()


@pytest.fixture
def resources(database_url: str, valkey_url: str, lossy: LossyClient) -> Iterator[Resources]:
    settings = Settings(database_url=database_url, cache_url=valkey_url, poll_interval_s=0.02, reclaim_idle_s=600)
    with opened(settings) as resources:
        resources = replace(resources, log=EventLog(lossy.client, NAMES))
        resources.log.ensure_group()
        yield resources


@pytest.fixture
def listening(resources: Resources) -> Listening:
    """A listener runs in this block, with some of the resources changed."""

    @contextmanager
    def run(**changed: object) -> Iterator[None]:
        stopping, ring = threading.Event(), threading.Event()
        loop = threading.Thread(target=Loop(replace(resources, **changed), "me", ring, stopping).run)
        loop.start()
        try:
            yield
        finally:
            stopping.set()
            ring.set()
            loop.join()

    return run


def publish(resources: Resources, event_id: str) -> str:
    event = Event(id=event_id, type=EventType.RECALCULATE)
    return resources.publisher.publish(event)[0]


def waiting(valkey: redis.Redis) -> set[str]:
    return {stream_id.decode() for stream_id in valkey.zrange("inbox:catalogue", 0, -1)}


def test_what_was_read_unheard_before_it_started_is_in_an_inbox(
    resources: Resources, lossy: LossyClient, listening: Listening, valkey: redis.Redis
) -> None:
    resources.log.receive("me", 10, "hint")
    read = publish(resources, "read")
    with lossy.losing(), pytest.raises(Unavailable):
        resources.log.receive("me", 10, "hint")
    unread = publish(resources, "unread")
    with listening():
        eventually(lambda: waiting(valkey) == {read, unread})


def test_while_a_breaker_is_open_a_few_are_read_to_be_tried_and_the_rest_stays_in_the_stream(
    resources: Resources, listening: Listening, valkey: redis.Redis
) -> None:
    resources.breakers.note(APPLYING, bad=1000, reason="boom")
    published = [publish(resources, str(n)) for n in range(SAMPLE + 10)]
    with listening():
        eventually(lambda: waiting(valkey) == set(published[:SAMPLE]))
        resources.breakers.reset(APPLYING)
        eventually(lambda: waiting(valkey) == set(published))


class Told(TaskQueue):
    """Keeps in mind at which inboxes it was asked to send somebody."""

    def __init__(self, resources: Resources, valkey: redis.Redis) -> None:
        super().__init__(make_celery(resources.settings.events_url.get_secret_value()), valkey, resources.locks)
        self.scopes: list[str] = []

    def apply_events(self, scope: str) -> None:
        self.scopes.append(scope)


def test_while_a_breaker_is_open_what_failed_before_keeps_nothing_fresh_from_its_try(
    resources: Resources, listening: Listening, valkey: redis.Redis
) -> None:
    """One try at a time is let through then, and the other tasks go away."""
    resources.breakers.note(APPLYING, bad=1000, reason="boom")
    suspect = publish(resources, "suspect")
    resources.log.receive("another", 1, "hint")

    def fail(held: Held) -> bool:
        resources.inboxes.fail(held, [(one, "boom") for one in resources.inboxes.take(held, 1)])
        return False

    resources.locks.in_rounds("catalogue", fail, 0)
    valkey.zadd("suspects:catalogue", {suspect: 1})
    cost = Event(id="fresh", type=EventType.COST_CHANGED, subject="P-1", location="NY", data={"amount": 1})
    fresh, _ = resources.publisher.publish(cost)
    scope = scope_of(cost.type, cost.subject)
    resources.log.receive("another", 1, "hint")
    resources.locks.withdraw_hint(scope)
    queue = Told(resources, valkey)
    with listening(queue=queue):
        eventually(lambda: len(queue.scopes) > 1)
        assert set(queue.scopes) == {scope}
        valkey.zrem(f"inbox:{scope}", fresh)
        eventually(lambda: "catalogue" in queue.scopes)


@pytest.mark.parametrize("scope", [b"\xff", b"", b"products:99", b"telemetry:postgresql", b"catalogue\n"])
def test_an_entry_with_a_scope_that_is_none_waits_with_the_catalogue_s(
    resources: Resources, listening: Listening, valkey: redis.Redis, scope: bytes
) -> None:
    """Whoever writes to the stream by hand neither ends a listener nor invents an inbox."""
    odd = valkey.xadd(NAMES.stream, {"event": "{}", "scope": scope}).decode()
    with listening():
        eventually(lambda: waiting(valkey) == {odd})
        after = publish(resources, "after")
        eventually(lambda: waiting(valkey) == {odd, after})
    with listening():  # which reads again what was read before
        later = publish(resources, "later")
        eventually(lambda: waiting(valkey) == {odd, after, later})
    assert valkey.smembers("inboxes") == {b"catalogue"}


class Deaf(EventLog):
    """Receives entries and does not hear of it, the first time."""

    deaf, times = True, 0

    def receive(self, consumer: str, count: int, hint: str) -> tuple[list[Entry], dict[str, Filled]]:
        entries, filled = super().receive(consumer, count, hint)
        self.times += 1
        if entries and self.deaf:
            self.deaf = False
            raise Unavailable("the answer was lost")
        return entries, filled


def test_what_is_received_unheard_while_it_runs_is_in_an_inbox_and_has_its_task(
    resources: Resources, listening: Listening, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox has a hint by then, which keeps others from queueing the task as long as it lives."""
    for giver in (inbox, event_log):
        monkeypatch.setattr(giver, "HINT_LIFE_S", 3600)
    log = Deaf(valkey, NAMES)
    with listening(log=log):
        eventually(lambda: log.times > 2)  # by then it is sure of what it has received
        read = publish(resources, "read")
        eventually(lambda: waiting(valkey) == {read})
        eventually(lambda: valkey.llen(EVENTS_QUEUE) == 1)
    assert not log.deaf


class Shaky(TaskQueue):
    """Is away once the first task is queued, for once."""

    sent, away = 0, True

    def send_hinted(self, scope: str) -> None:
        if self.sent and self.away:
            self.away = False
            raise Unavailable("the task queue is not available", upstream="broker")
        super().send_hinted(scope)
        self.sent += 1


def test_tasks_that_could_not_be_queued_are_queued_as_soon_as_that_can_be_done(
    resources: Resources, listening: Listening, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their inboxes have a hint by then, which keeps others from queueing them as long as it lives."""
    for giver in (inbox, event_log):
        monkeypatch.setattr(giver, "HINT_LIFE_S", 3600)
    events = [
        Event(id=f"P-{n}", type=EventType.LIST_PRICE_CHANGED, subject=f"P-{n}", location="NY", data={"amount": 1})
        for n in range(40)
    ]
    for event in events:
        resources.publisher.publish(event)
    queue = Shaky(make_celery(resources.settings.events_url.get_secret_value()), valkey, resources.locks)
    with listening(queue=queue):
        eventually(lambda: queue.sent >= len({scope_of(event.type, event.subject) for event in events}))
    assert not queue.away


def test_whichever_answer_is_lost_every_event_gets_into_its_inbox(
    resources: Resources, lossy: LossyClient, listening: Listening, valkey: redis.Redis
) -> None:
    expected = set()
    with listening():
        for nth in range(1, 9):
            with lossy.losing(nth):
                expected.add(publish(resources, f"event-{nth}"))
                eventually(lossy.has_lost)
            eventually(lambda: waiting(valkey) == expected)
    assert resources.log.backlog().pending == 8
