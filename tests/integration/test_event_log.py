"""The stream: read once, reclaimed when forgotten, set aside with a reason, never trimmed too far."""

from uuid import uuid4

import pytest
import redis

from app.adapters.event_log import EventLog, position, position_at
from app.adapters.event_names import Names
from app.domain.events import Event, EventType
from app.errors import Unavailable
from tests.support.waiting import eventually

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")


@pytest.fixture
def log(valkey: redis.Redis) -> EventLog:
    log = EventLog(valkey, NAMES, remember_s=100)
    log.ensure_group()
    return log


def event(event_id: str | None = None) -> Event:
    return Event(id=event_id or str(uuid4()), type=EventType.RECALCULATE, source="/test")


def test_every_entry_is_read_by_one_consumer_in_the_order_of_the_stream(log: EventLog) -> None:
    ids = [log.publish(event())[0] for _ in range(5)]
    first, second = log.read("one", 3), log.read("two", 10)
    assert [entry.stream_id for entry in (*first, *second)] == ids
    assert len(first) == 3
    assert log.read("one", 10) == []


def test_what_was_not_acknowledged_is_reclaimed_and_what_was_is_not(log: EventLog) -> None:
    ids = [log.publish(event())[0] for _ in range(3)]
    log.read("dead", 10)
    log.acknowledge(ids[:1])
    assert log.reclaim("alive", idle_s=60, count=10) == []
    reclaimed = eventually(lambda: log.reclaim("alive", idle_s=0.05, count=10))
    assert [(entry.stream_id, failed) for entry, failed in reclaimed] == [(ids[1], 0), (ids[2], 0)]
    log.acknowledge(ids)
    assert log.reclaim("alive", idle_s=0, count=10) == []


def test_only_failures_that_are_the_events_own_count_as_attempts(log: EventLog) -> None:
    stream_id, _ = log.publish(event())
    log.read("me", 10)

    def attempts() -> int:
        ((_, failed),) = log.reclaim("me", idle_s=0, count=10)
        return failed

    for error in (Unavailable("away"), ConnectionError(), TimeoutError()):
        with pytest.raises(type(error)), log.attempt([stream_id]):
            raise error
        assert attempts() == 0
    for expected in (1, 2):
        with pytest.raises(ZeroDivisionError), log.attempt([stream_id]):
            raise ZeroDivisionError
        assert attempts() == expected
    log.attempt([stream_id]).__enter__()  # and the process dies
    assert attempts() == 3


def test_an_acknowledged_entry_leaves_no_count_behind(log: EventLog, valkey: redis.Redis) -> None:
    ids = [log.publish(event())[0] for _ in range(2)]
    entries = log.read("me", 10)
    with log.attempt(ids):
        pass
    log.acknowledge(ids[:1])
    log.dead_letter(entries[1], "why", 1)
    assert not valkey.exists("s:attempts")


def test_a_dead_letter_keeps_the_event_the_reason_and_the_place_and_is_acknowledged(
    log: EventLog, valkey: redis.Redis
) -> None:
    log.publish(event("bad"))
    (entry,) = log.read("me", 10)
    log.dead_letter(entry, "no such thing", 3)
    log.refuse(b"gibberish", "not JSON")
    letters = [letter for _, letter in valkey.xrange("d")]
    assert letters == [
        {
            b"event": entry.event,
            b"stream_id": entry.stream_id.encode(),
            b"reason": b"no such thing",
            b"attempts": b"3",
        },
        {b"event": b"gibberish", b"stream_id": b"", b"reason": b"not JSON", b"attempts": b"1"},
    ]
    assert valkey.xpending("s", "g")["pending"] == 0


def test_trimming_drops_what_every_group_is_done_with_and_nothing_else(log: EventLog, valkey: redis.Redis) -> None:
    ids = [log.publish(event())[0] for _ in range(6)]
    assert log.trim() == 0, "nothing was read"
    log.read("me", 4)
    assert log.trim() == 0, "nothing was acknowledged"
    log.acknowledge([ids[0], ids[2]])
    assert log.trim() == 1
    assert [stream_id.decode() for stream_id, _ in valkey.xrange("s")] == ids[1:]
    valkey.xgroup_create("s", "another", id=ids[1])
    log.acknowledge([ids[1], ids[3]])
    assert log.trim() == 0, "the other group has read up to the second only"
    valkey.xgroup_setid("s", "another", "$")
    log.trim()
    assert [entry.stream_id for entry in log.read("me", 10)] == ids[4:]


def test_a_message_is_heard_first_by_one_of_many(log: EventLog) -> None:
    heard = [log.hear(b"ding", 5) for _ in range(3)]
    assert [first for _, first in heard] == [True, False, False]
    assert len({own_id for own_id, _ in heard}) == 1
    assert log.hear(b"dong", 5)[1]


def test_positions_order_as_stream_ids_do() -> None:
    ids = ["0-1", "5-0", "5-1", "5-10", "6-0", "1700000000000-0", "1700000000000-2", "1700000000001-0"]
    positions = [position(stream_id) for stream_id in ids]
    assert positions == sorted(set(positions))
    assert position_at(1_700_000_000_000) == position("1700000000000-0")
    assert position("99999999999999999-99") > position("1700000000000-5")


def test_a_group_that_vanished_is_made_again(log: EventLog, valkey: redis.Redis) -> None:
    log.publish(event())
    valkey.delete("s")
    log.ensure_group()
    stream_id, _ = log.publish(event())
    log.ensure_group()
    assert [entry.stream_id for entry in log.read("me", 10)] == [stream_id]


def test_only_consumers_that_are_gone_and_hold_nothing_are_forgotten(log: EventLog, valkey: redis.Redis) -> None:
    log.publish(event("held"))
    log.read("gone, but holds an entry", 10)
    log.read("there", 10)
    log.beat("there")
    log.publish(event("done"))
    (entry,) = log.read("gone", 10)
    log.acknowledge([entry.stream_id])
    log.forget_consumers()
    left = {consumer["name"].decode() for consumer in valkey.xinfo_consumers("s", "g")}
    assert left == {"gone, but holds an entry", "there"}
