"""Publishing: an event is in the stream once, its id is known, and the doorbell rings with its place."""

import asyncio
import json
import threading
from uuid import uuid4

import pytest
import redis

from app.adapters.event_channel import EventChannel
from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.event_publishing import AsyncPublisher, Publisher
from app.adapters.redis_clients import make_async_redis, make_redis
from app.domain.events import Event, EventType, decode_event
from tests.support.waiting import eventually

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")


@pytest.fixture
def log(valkey: redis.Redis) -> EventLog:
    log = EventLog(valkey, NAMES)
    log.ensure_group()
    return log


@pytest.fixture
def publisher(valkey: redis.Redis) -> Publisher:
    return Publisher(valkey, NAMES, remember_s=100)


def event(event_id: str | None = None) -> Event:
    return Event(id=event_id or str(uuid4()), type=EventType.RECALCULATE, source="/test")


def test_a_published_event_is_in_the_stream_and_rings_the_doorbell_with_its_place(
    publisher: Publisher, log: EventLog, valkey: redis.Redis
) -> None:
    sent = event()
    with EventChannel(valkey, NAMES).subscribe() as subscription:
        eventually(lambda: subscription.subscribed and subscription.get_message(timeout=0.1) is None)
        stream_id, new = publisher.publish(sent)
        message = eventually(lambda: subscription.get_message(timeout=1))
    assert new
    assert json.loads(message["data"]) == {"streamid": stream_id, **json.loads(sent.model_dump_json(exclude_none=True))}
    (entry,) = log.read("me", 10)
    assert entry.stream_id == stream_id
    assert decode_event(entry.event) == sent


def test_a_second_publish_of_an_id_finds_the_first(publisher: Publisher, valkey: redis.Redis) -> None:
    first = publisher.publish(event("one"))
    assert publisher.publish(event("one")) == (first[0], False)
    assert valkey.xlen("s") == 1
    assert 0 < valkey.ttl("event:one") <= 100


def test_of_many_publishes_of_an_id_at_once_one_is_new(valkey: redis.Redis, valkey_url: str) -> None:
    answers: list[tuple[str, bool]] = []
    start = threading.Barrier(8)

    def publish() -> None:
        with make_redis(valkey_url, 5) as client:
            own = Publisher(client, NAMES, 100)
            start.wait()
            answers.extend(own.publish(event(f"e-{n}")) for n in range(20))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 160
    assert sum(new for _, new in answers) == valkey.xlen("s") == 20
    assert len({stream_id for stream_id, _ in answers}) == 20


def test_the_publishers_side_does_the_same_on_the_event_loop(log: EventLog, valkey_url: str) -> None:
    async def publish() -> tuple[tuple[str, bool], tuple[str, bool], bool, bool]:
        client = make_async_redis(valkey_url, 5)
        own = AsyncPublisher(client, NAMES, 100)
        try:
            return (
                await own.publish(event("two")),
                await own.publish(event("two")),
                await own.known("two"),
                await own.known("three"),
            )
        finally:
            await own.close()

    first, second, known, unknown = asyncio.run(publish())
    assert first[1]
    assert second == (first[0], False)
    assert (known, unknown) == (True, False)
    assert [entry.stream_id for entry in log.read("me", 10)] == [first[0]]
