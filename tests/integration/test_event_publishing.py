"""Publishing: an event is in the stream once, its id is known, and the doorbell rings with its place."""

import asyncio
import json
import threading
from uuid import uuid4

import pytest
import redis
from opentelemetry import trace

from app.adapters.event_channel import EventChannel
from app.adapters.event_log import EventLog
from app.adapters.event_names import STREAM_ID_PREFIX, Names
from app.adapters.event_publishing import AsyncPublisher, Encoded, Publisher
from app.adapters.redis_clients import make_async_redis, make_redis
from app.domain.events import Event, EventType, decode_event, encode_event
from app.errors import Overloaded
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
    ((entry,), _) = log.receive("me", 10, "hint")
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
        own = AsyncPublisher(client, NAMES, 100, max_backlog=1)
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
    assert [entry.stream_id for entry in log.receive("me", 10, "hint")[0]] == [first[0]]


def encoded(event_id: str | None = None) -> Encoded:
    sent = event(event_id)
    return Encoded(sent.id, sent.type, sent.subject, encode_event(sent))


def accept(valkey_url: str, events: list[Encoded], max_backlog: int = 10**9, times: int = 1) -> list[set[int]]:
    """Accept the same events so often, at once."""

    async def run() -> list[set[int]]:
        publisher = AsyncPublisher(make_async_redis(valkey_url, 5), NAMES, 100, max_backlog)
        try:
            return list(await asyncio.gather(*(publisher.accept(events) for _ in range(times))))
        finally:
            await publisher.close()

    return asyncio.run(run())


def in_stream(valkey: redis.Redis) -> list[str]:
    return [decode_event(fields[b"event"]).id for _, fields in valkey.xrange("s")]


def test_many_events_are_in_the_stream_in_their_order_and_ring_once(valkey: redis.Redis, valkey_url: str) -> None:
    events = [encoded() for _ in range(1000)]
    with EventChannel(valkey, NAMES).subscribe() as subscription:
        eventually(lambda: subscription.subscribed and subscription.get_message(timeout=0.1) is None)
        assert accept(valkey_url, events) == [set()]
        message = eventually(lambda: subscription.get_message(timeout=1))
        assert subscription.get_message(timeout=0.1) is None
    assert in_stream(valkey) == [event.event_id for event in events]
    places = [stream_id.decode() for stream_id, _ in valkey.xrange("s")]
    assert message["data"].startswith(STREAM_ID_PREFIX)
    assert json.loads(message["data"]) == {"streamid": places[0], "laststreamid": places[-1], "events": 1000}
    assert [valkey.get(f"event:{event.event_id}").decode() for event in events] == places


def test_only_those_that_are_not_known_are_published(valkey: redis.Redis, valkey_url: str) -> None:
    events = [encoded(f"e-{n}") for n in range(6)]
    accept(valkey_url, [events[n] for n in (1, 4, 5)])
    assert accept(valkey_url, events) == [{1, 4, 5}]
    assert in_stream(valkey) == ["e-1", "e-4", "e-5", "e-0", "e-2", "e-3"]
    assert accept(valkey_url, events) == [set(range(6))]
    assert valkey.xlen("s") == 6


def test_of_the_same_events_many_times_at_once_each_is_published_once(valkey: redis.Redis, valkey_url: str) -> None:
    events = [encoded(f"e-{n}") for n in range(200)]
    answers = accept(valkey_url, events, times=10)
    assert sorted(len(known) for known in answers) == [0] + [200] * 9
    assert in_stream(valkey) == [event.event_id for event in events]


def test_a_trace_goes_on_in_every_event(valkey: redis.Redis, valkey_url: str) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with trace.use_span(span):
        accept(valkey_url, [encoded(), encoded()])
    events = [decode_event(fields[b"event"]) for _, fields in valkey.xrange("s")]
    assert {event.traceparent for event in events} == {f"00-{0xA1:032x}-{0xB2:016x}-01"}


def refused(valkey_url: str, events: list[Encoded], max_backlog: int) -> Overloaded:
    with pytest.raises(Overloaded) as refusal:
        accept(valkey_url, events, max_backlog)
    return refusal.value


def test_a_full_backlog_takes_nothing_new_and_all_that_was_accepted_before(
    publisher: Publisher, log: EventLog, valkey: redis.Redis, valkey_url: str
) -> None:
    accept(valkey_url, [encoded(f"e-{n}") for n in range(5)], max_backlog=3)  # the limit was not reached before
    for events in ([encoded("new")], [encoded("e-1"), encoded("new")]):
        error = refused(valkey_url, events, max_backlog=5)
        assert "5 events" in str(error)
        assert 5 <= error.retry_after_s < 10
    assert in_stream(valkey) == [f"e-{n}" for n in range(5)]
    assert not valkey.exists("event:new")
    assert accept(valkey_url, [encoded("e-1")], max_backlog=5) == [{0}], "a retry of what was accepted"
    assert publisher.publish(event("from-the-outbox"))[1]
    log.receive("me", 4, "hint")
    refused(valkey_url, [encoded()], max_backlog=6)
    ids = [stream_id for stream_id, _ in valkey.xrange("s")]
    valkey.xack("s", "g", ids[0])
    assert accept(valkey_url, [encoded("new")], max_backlog=6) == [set()]


def test_the_backlog_is_that_of_the_slowest_group(log: EventLog, valkey: redis.Redis, valkey_url: str) -> None:
    accept(valkey_url, [encoded() for _ in range(4)])
    valkey.xgroup_create("s", "slow", id="0")
    read, _ = log.receive("me", 10, "hint")
    valkey.xack("s", "g", *(entry.stream_id for entry in read))
    refused(valkey_url, [encoded()], max_backlog=4)
    valkey.xgroup_destroy("s", "slow")
    assert accept(valkey_url, [encoded()], max_backlog=4) == [set()]


def test_without_a_group_or_where_its_lag_is_unknown_the_whole_stream_is_the_backlog(
    valkey: redis.Redis, valkey_url: str
) -> None:
    accept(valkey_url, [encoded() for _ in range(4)], max_backlog=1)  # there is no stream yet
    refused(valkey_url, [encoded()], max_backlog=4)
    ids = [stream_id for stream_id, _ in valkey.xrange("s")]
    valkey.xgroup_create("s", "g", id=ids[1])
    valkey.xdel("s", ids[2])
    assert valkey.xinfo_groups("s")[0]["lag"] is None
    refused(valkey_url, [encoded()], max_backlog=3)
    assert accept(valkey_url, [encoded()], max_backlog=4) == [set()]


@pytest.mark.parametrize(("excess", "least"), [(0, 5), (20_000, 25), (10_000_000, 60)])
def test_clients_are_told_to_come_back_when_what_is_too_much_may_be_applied(
    valkey: redis.Redis, valkey_url: str, excess: int, least: int
) -> None:
    """A group that has read nothing, and a counter of entries that says how many there were."""
    valkey.xgroup_create("s", "g", id="0", mkstream=True)
    valkey.execute_command("XSETID", "s", "1-1", "ENTRIESADDED", 100 + excess, "MAXDELETEDID", "0-0")
    valkey.execute_command("XGROUP", "SETID", "s", "g", "0", "ENTRIESREAD", 0)
    accept(valkey_url, [encoded()])
    assert valkey.xinfo_groups("s")[0]["lag"] == 101 + excess
    assert least <= refused(valkey_url, [encoded()], max_backlog=101).retry_after_s < least + 5
