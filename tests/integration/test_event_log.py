"""The stream: read once, reclaimed when forgotten, set aside with a reason, never trimmed too far."""

from collections.abc import Callable
from uuid import uuid4

import pytest
import redis

from app.adapters.event_channel import EventChannel
from app.adapters.event_log import Entry, EventLog
from app.adapters.event_names import Names
from app.adapters.event_publishing import Publisher
from app.adapters.inbox import Filled, Inboxes
from app.domain.events import Event, EventType
from app.domain.positions import position, position_at
from tests.support.lossy import LossyClient
from tests.support.waiting import eventually

Publish = Callable[..., str]
NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")


@pytest.fixture
def log(valkey: redis.Redis) -> EventLog:
    log = EventLog(valkey, NAMES)
    log.ensure_group()
    return log


@pytest.fixture
def publish(valkey: redis.Redis) -> Publish:
    publisher = Publisher(valkey, NAMES, remember_s=100)
    return lambda event_id=None: publisher.publish(event(event_id))[0]


def receive(log: EventLog, consumer: str, count: int) -> list[Entry]:
    entries, _ = log.receive(consumer, count, "hint")
    return entries


def event(event_id: str | None = None) -> Event:
    return Event(id=event_id or str(uuid4()), type=EventType.RECALCULATE, source="/test")


def test_every_entry_is_read_by_one_consumer_in_the_order_of_the_stream(log: EventLog, publish: Publish) -> None:
    ids = [publish() for _ in range(5)]
    first, second = receive(log, "one", 3), receive(log, "two", 10)
    assert [entry.stream_id for entry in (*first, *second)] == ids
    assert len(first) == 3
    assert receive(log, "one", 10) == []


def test_what_is_received_is_in_the_inbox_of_its_scope_and_that_has_a_hint(log: EventLog, valkey: redis.Redis) -> None:
    changed = Event(id="e", type=EventType.COST_CHANGED, subject="P-1", location="NY", data={"amount": 1})
    publisher = Publisher(valkey, NAMES, remember_s=100)
    narrow, _ = publisher.publish(changed)
    without_scope = valkey.xadd("s", {"event": "{}"}).decode()
    entries, filled = log.receive("me", 10, "hint")
    assert [(entry.stream_id, entry.scope) for entry in entries] == [
        (narrow, "products:7"),
        (without_scope, "catalogue"),
    ]
    assert filled == {"products:7": Filled(1, True), "catalogue": Filled(1, True)}
    assert log.receive("me", 10, "hint") == ([], {})

    later, _ = publisher.publish(changed.model_copy(update={"id": "f"}))
    assert log.receive("another", 10, "its hint")[1] == {"products:7": Filled(2, False)}, "a task is on its way"
    inbox = valkey.zrange("inbox:products:7", 0, -1, withscores=True)
    assert [stream_id.decode() for stream_id, _ in inbox] == [narrow, later]
    Inboxes(valkey, NAMES).put({"products:7": [narrow, later]}, "again")
    assert valkey.zrange("inbox:products:7", 0, -1, withscores=True) == inbox, "put has them in the same place"
    assert valkey.smembers("inboxes") == {b"products:7", b"catalogue"}


def test_what_was_not_acknowledged_is_reclaimed_and_what_was_is_not(
    log: EventLog, publish: Publish, valkey: redis.Redis
) -> None:
    ids = [publish() for _ in range(3)]
    receive(log, "dead", 10)
    valkey.xack("s", "g", ids[0])
    assert log.reclaim("alive", idle_s=60, count=10) == []
    reclaimed = eventually(lambda: log.reclaim("alive", idle_s=0.05, count=10))
    assert [entry.stream_id for entry in reclaimed] == ids[1:]
    valkey.xack("s", "g", *ids)
    assert log.reclaim("alive", idle_s=0, count=10) == []


def test_what_a_consumer_has_read_can_be_told_again(log: EventLog, publish: Publish, valkey: redis.Redis) -> None:
    """It cannot know what it has read where the answer was lost."""
    ids = [publish() for _ in range(7)]
    receive(log, "me", 6)
    receive(log, "another", 1)
    valkey.xack("s", "g", ids[0])
    valkey.xdel("s", ids[2])
    pages = list(log.unacknowledged("me", 2))
    assert [[entry.stream_id for entry in page] for page in pages] == [ids[1:3], ids[3:5], ids[5:6]]
    assert [entry.event for entry in pages[0]][1] == b"", "deleted by hand"
    assert list(log.unacknowledged("nobody", 2)) == []


def test_reclaiming_goes_through_all_that_is_pending(log: EventLog, publish: Publish) -> None:
    """Those at the beginning, which wait for workers, are idle for long again and again."""
    ids = [publish() for _ in range(10)]
    receive(log, "dead", 10)
    reclaimed = [entry.stream_id for _ in range(5) for entry in log.reclaim("alive", idle_s=0, count=2)]
    assert reclaimed == ids
    assert [entry.stream_id for entry in log.reclaim("alive", idle_s=0, count=2)] == ids[:2], "and begins again"


def test_trimming_drops_what_every_group_is_done_with_and_nothing_else(
    log: EventLog, valkey: redis.Redis, publish: Publish
) -> None:
    ids = [publish() for _ in range(6)]
    assert log.trim() == 0, "nothing was read"
    receive(log, "me", 4)
    assert log.trim() == 0, "nothing was acknowledged"
    valkey.xack("s", "g", ids[0], ids[2])
    assert log.trim() == 1
    assert [stream_id.decode() for stream_id, _ in valkey.xrange("s")] == ids[1:]
    valkey.xgroup_create("s", "another", id=ids[1])
    valkey.xack("s", "g", ids[1], ids[3])
    assert log.trim() == 0, "the other group has read up to the second only"
    valkey.xgroup_setid("s", "another", "$")
    log.trim()
    assert [entry.stream_id for entry in receive(log, "me", 10)] == ids[4:]


def test_all_who_hear_a_message_without_an_id_give_it_the_same(valkey: redis.Redis, valkey_url: str) -> None:
    channel, lossy = EventChannel(valkey, NAMES), LossyClient(valkey_url)
    with lossy.losing():
        named = EventChannel(lossy.client, NAMES).name(b"ding", 5)
    lossy.client.close()
    assert {channel.name(b"ding", 5) for _ in range(3)} == {named}
    assert channel.name(b"dong", 5) != named


def test_a_malformed_message_is_set_aside_once_by_whoever_hears_it(valkey: redis.Redis, valkey_url: str) -> None:
    channel, lossy = EventChannel(valkey, NAMES), LossyClient(valkey_url)
    assert channel.refuse(b"ding", "no event", 60)
    other = EventChannel(lossy.client, NAMES)
    with lossy.losing():
        other.refuse(b"dong", "no event", 60)
    lossy.client.close()
    assert [channel.refuse(message, "no event", 60) for message in (b"ding", b"dong", b"ding")] == [False] * 3
    letters = [fields for _, fields in valkey.xrange("d")]
    assert [letter[b"event"] for letter in letters] == [b"ding", b"dong"]
    now_ms = valkey.time()[0] * 1000
    assert all(now_ms - 60_000 < int(letter[b"first_failed_at"]) <= now_ms + 1_000 for letter in letters)


def test_a_malformed_message_is_not_lost_where_its_letter_cannot_be_written(valkey: redis.Redis) -> None:
    channel = EventChannel(valkey, NAMES)
    valkey.set("d", "no stream")
    with pytest.raises(redis.ResponseError):
        channel.refuse(b"ding", "no event", 60)
    valkey.delete("d")
    assert channel.refuse(b"ding", "no event", 60), "another listener sets it aside"


def test_positions_order_as_stream_ids_do() -> None:
    ids = ["0-1", "5-0", "5-1", "5-10", "6-0", "1700000000000-0", "1700000000000-2", "1700000000001-0"]
    positions = [position(stream_id) for stream_id in ids]
    assert positions == sorted(set(positions))
    assert position_at(1_700_000_000_000) == position("1700000000000-0")
    assert position("99999999999999999-99") > position("1700000000000-5")


def test_a_group_that_vanished_is_made_again(log: EventLog, valkey: redis.Redis, publish: Publish) -> None:
    publish()
    valkey.delete("s")
    log.ensure_group()
    stream_id = publish()
    log.ensure_group()
    assert [entry.stream_id for entry in receive(log, "me", 10)] == [stream_id]


def test_only_consumers_that_are_gone_and_hold_nothing_are_forgotten(
    log: EventLog, valkey: redis.Redis, publish: Publish
) -> None:
    publish("held")
    receive(log, "gone, but holds an entry", 10)
    receive(log, "there", 10)
    log.beat("there")
    publish("done")
    (entry,) = receive(log, "gone", 10)
    valkey.xack("s", "g", entry.stream_id)
    log.forget_consumers()
    left = {consumer["name"].decode() for consumer in valkey.xinfo_consumers("s", "g")}
    assert left == {"gone, but holds an entry", "there"}


def test_the_backlog_is_what_is_unread_and_what_is_pending_and_how_old_it_is(
    log: EventLog, publish: Publish, valkey: redis.Redis
) -> None:
    assert log.backlog() == (0, 0, 0.0)
    seconds, _ = valkey.time()
    old = valkey.xadd("s", {"event": "{}"}, id=f"{(seconds - 100) * 1000}-0")
    for _ in range(3):
        publish()
    assert log.backlog()[:2] == (4, 0)
    receive(log, "me", 2)
    unread, pending, age = log.backlog()
    assert (unread, pending) == (2, 2)
    assert 100 <= age < 160
    valkey.xack("s", "g", old)
    assert log.backlog().pending == 1
    assert log.backlog().oldest_s < 60
    receive(log, "me", 10)
    valkey.xack("s", "g", *[stream_id for stream_id, _ in valkey.xrange("s")])
    assert log.backlog() == (0, 0, 0.0)
