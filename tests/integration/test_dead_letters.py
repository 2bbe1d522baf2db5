"""Dead letters: found, replayed once however often and by however many, not faster than allowed, discarded."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.adapters.dead_letters import DeadLetters
from app.adapters.event_names import STREAM_ID_PREFIX, Names
from app.adapters.redis_clients import make_redis
from app.domain.dead_letter import DeadLetter, Replayed, Wait, Wanted
from app.domain.events import Event, EventType, decode_event
from app.errors import NotFound, NotReplayable, RateLimited
from app.services.dead_letters import (
    LOOKED_AT,
    PAGE,
    Outcome,
    discard,
    get,
    oldest_first,
    page,
    replay,
    replay_all,
    replay_some,
)

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")

Put = Callable[..., str]


@pytest.fixture
def letters(valkey: redis.Redis) -> DeadLetters:
    return DeadLetters(valkey, NAMES, remember_s=100, replays_per_s=1_000)


@pytest.fixture
def put(valkey: redis.Redis) -> Put:
    """Set an event aside, as a worker does; the letter's id."""

    def put(of: str = "e", letter_id: str = "*", raw: bytes | None = None, **fields: Any) -> str:
        event: dict[str, Any] = {"id": of, "type": "stock.changed", "subject": "P", "location": "NY"}
        letter = {
            "event": json.dumps(event | {"data": {"quantity": 1}}) if raw is None else raw,
            "stream_id": "5-1",
            "event_id": of if raw is None else "",
            "reason": "there is no 'P'",
            "attempts": 3,
            "first_error": "one",
            "first_failed_at": 1_700_000_000_000,
            "last_error": "two",
            "last_failed_at": 1_700_000_000_500,
            "trace_id": "ab" * 16,
        } | fields
        stored: bytes = valkey.xadd(
            "d", {name: value for name, value in letter.items() if value is not None}, letter_id
        )
        if letter["event_id"]:
            valkey.hset("d:index", letter["event_id"], stored)
        return stored.decode()

    return put


def entries(valkey: redis.Redis) -> list[bytes]:
    return [fields[b"event"] for _, fields in valkey.xrange("s")]


def test_a_letter_tells_all_that_was_noted(letters: DeadLetters, put: Put) -> None:
    letter = get(letters, put("e-1"))
    said = letter.whole()
    assert (said["event_id"], said["type"], said["subject"], said["location"]) == ("e-1", "stock.changed", "P", "NY")
    assert (said["reason"], said["attempts"], said["stream_id"]) == ("there is no 'P'", 3, "5-1")
    assert (said["first_error"], said["last_error"], said["trace_id"]) == ("one", "two", "ab" * 16)
    assert said["first_failed_at"].isoformat() == "2023-11-14T22:13:20+00:00"
    assert said["replayable"]
    assert json.loads(bytes(said["event"]))["data"] == {"quantity": 1}
    assert said["message"] is None


def test_a_letter_from_before_there_were_as_many_fields_is_read(letters: DeadLetters, put: Put) -> None:
    old = dict.fromkeys(("event_id", "first_error", "first_failed_at", "last_error", "last_failed_at", "trace_id"))
    letter = get(letters, put("e-1", **old, attempts="many"))
    said = letter.summary()
    assert said["event_id"] == "e-1"
    assert [said[name] for name in old if name != "event_id"] == [None] * 5
    assert said["attempts"] == 0
    assert isinstance(letters.replay(letter, letter.decoded), Replayed)


def test_a_message_that_is_no_event_is_shown_and_cannot_be_replayed(
    letters: DeadLetters, put: Put, valkey: redis.Redis
) -> None:
    letter_id = put(raw=b'{"id": \xff' + b"x" * 20_000)
    said = get(letters, letter_id).whole()
    assert (said["event"], said["event_id"], said["replayable"]) == (None, None, False)
    assert said["message"].startswith('{"id": \ufffdxxx')
    assert len(said["message"]) == 10_000
    with pytest.raises(NotReplayable, match="JSON"):
        replay(letters, letter_id)
    assert letters.count() == 1
    assert not valkey.exists("s")


def test_a_replayed_event_is_in_the_stream_again_with_its_first_place_and_its_letter_is_gone(
    letters: DeadLetters, put: Put, valkey: redis.Redis
) -> None:
    letter_id = put("e-1")
    valkey.set("event:e-1", "5-1", ex=10)
    with valkey.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe("c")
        replayed = replay(letters, letter_id)
        rung = next(message for message in iter(lambda: subscription.get_message(timeout=1), 0) if message)
    (stored,) = entries(valkey)
    event = decode_event(stored)
    assert (event.id, event.streamid, event.data) == ("e-1", "5-1", {"quantity": 1})
    assert rung["data"] == stored
    assert stored.startswith(STREAM_ID_PREFIX), "listeners must not take it over"
    assert valkey.get("event:e-1").decode() == replayed.stream_id
    assert valkey.ttl("event:e-1") > 10
    assert letters.count() == 0
    assert not valkey.exists("d:index")
    with pytest.raises(NotFound):
        replay(letters, letter_id)
    assert len(entries(valkey)) == 1


def test_an_event_that_dies_again_keeps_its_first_place(letters: DeadLetters, put: Put, valkey: redis.Redis) -> None:
    replay(letters, put("e-1"))
    replay(letters, put("e-1", raw=entries(valkey)[0], event_id="e-1", stream_id="9-9"))
    assert [decode_event(stored).streamid for stored in entries(valkey)] == ["5-1", "5-1"]


def test_two_who_replay_at_once_replay_once(put: Put, valkey: redis.Redis, valkey_url: str) -> None:
    letter_ids = [put(f"e-{n}") for n in range(50)]
    outcomes: list[Outcome] = []
    start = threading.Barrier(4)

    def work() -> None:
        with make_redis(valkey_url, 5) as client:
            own = DeadLetters(client, NAMES, 100, 1_000)
            start.wait()
            outcomes.append(replay_some(own, letter_ids))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(decode_event(stored).id for stored in entries(valkey)) == sorted(f"e-{n}" for n in range(50))
    assert sum(len(outcome.replayed) for outcome in outcomes) == 50
    assert sum(len(outcome.gone) for outcome in outcomes) == 150


def test_the_index_leads_to_the_newest_letter_of_an_event(letters: DeadLetters, put: Put, valkey: redis.Redis) -> None:
    first, second = put("e-1"), put("e-1")
    replay(letters, first)
    letter = letters.of_event("e-1")
    assert letter is not None
    assert letter.letter_id == second
    discard(letters, [second])
    assert letters.of_event("e-1") is None
    valkey.hset("d:index", "e-1", "1-1")  # somebody trimmed the stream by hand
    assert letters.of_event("e-1") is None


def test_replays_are_limited_for_all_together(put: Put, valkey_url: str) -> None:
    """Ten per second: the bucket of ten is empty after ten, whoever took them."""
    letter_ids = [put(f"e-{n}") for n in range(13)]
    with make_redis(valkey_url, 5) as one, make_redis(valkey_url, 5) as another:
        first, second = (DeadLetters(client, NAMES, 100, 10) for client in (one, another))
        assert len(replay_some(first, letter_ids[:8]).replayed) == 8
        outcome = replay_some(second, letter_ids[8:])
        assert 2 <= len(outcome.replayed) <= 4, "two, and what was added meanwhile"
        assert outcome.wait is not None
        assert 0 < outcome.wait.ms <= 100
        assert outcome.not_yet == letter_ids[8 + len(outcome.replayed) :]
    with make_redis(valkey_url, 5) as client:
        slow = DeadLetters(client, NAMES, 100, 1)
        with pytest.raises(RateLimited) as limited:
            replay(slow, letter_ids[-1])
        assert limited.value.retry_after_s == 1


def test_the_rate_is_kept_over_time(put: Put, letters: DeadLetters, valkey: redis.Redis) -> None:
    own = DeadLetters(valkey, NAMES, 100, replays_per_s=100)
    for n in range(130):
        put(f"e-{n}")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        threading.Event().wait(seconds)

    outcome = Outcome()
    before = valkey.time()
    steps = list(replay_all(own, oldest_first(own, Wanted()), sleep, outcome))
    after = valkey.time()
    assert (len(steps), len(outcome.replayed), own.count()) == (130, 130, 0)
    assert [replayed.event_id for replayed in outcome.replayed] == [f"e-{n}" for n in range(130)]
    took = after[0] - before[0] + (after[1] - before[1]) / 1e6
    assert took >= 0.29, "a hundred at once, then one every 10 ms"
    assert all(0 < wait <= 0.011 for wait in waits)


def test_a_clock_that_jumps_back_does_not_stop_replays(put: Put, valkey: redis.Redis) -> None:
    own = DeadLetters(valkey, NAMES, 100, replays_per_s=10)
    future = valkey.time()[0] * 1000 + 3_600_000
    valkey.hset("d:replays", mapping={"tokens": "0.95", "at": str(future)})
    letter = get(own, put("e-1"))
    assert isinstance(letter.decoded, Event)
    answer = own.replay(letter, letter.decoded)
    assert isinstance(answer, Wait)
    assert answer.ms <= 6
    assert float(valkey.hget("d:replays", "at")) < future


def test_pages_lead_through_all_letters_from_the_newest(letters: DeadLetters, put: Put) -> None:
    letter_ids = [put(f"e-{n}") for n in range(7)]
    found, before = [], ""
    sizes = []
    while True:
        some, next_before = page(letters, Wanted(), before, 3)
        found += [letter.letter_id for letter in some]
        sizes.append(len(some))
        if next_before is None:
            break
        before = next_before
    assert found == letter_ids[::-1]
    assert sizes == [3, 3, 1]
    assert page(letters, Wanted(), "", 7)[1] is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), ["1000-0", "2000-0", "3000-0", "4000-0"]),
        (Wanted(reason="NO 'p'"), ["1000-0", "3000-0"]),
        (Wanted(type=EventType.STOCK_CHANGED), ["1000-0", "2000-0", "3000-0"]),
        (Wanted(type=EventType.COST_CHANGED), []),
        (Wanted(since=2000), ["2000-0", "3000-0", "4000-0"]),
        (Wanted(until=3000), ["1000-0", "2000-0"]),
        (Wanted(since=1500, until=3500, reason="'p"), ["3000-0"]),
    ],
)
def test_filters_leave_those_that_are_meant(
    letters: DeadLetters, put: Put, wanted: Wanted, expected: list[str]
) -> None:
    put("e-1", "1000-0")
    put("e-2", "2000-0", reason="5 attempts failed")
    put("e-3", "3000-0")
    put("e-4", "4000-0", raw=b"nonsense", reason="not JSON")
    assert [letter.letter_id for letter in oldest_first(letters, wanted)] == expected
    assert [letter.letter_id for letter in page(letters, wanted, "", 10)[0]] == expected[::-1]


def test_a_page_of_few_among_very_many_ends_early_and_says_where_to_go_on(
    letters: DeadLetters, put: Put, valkey: redis.Redis
) -> None:
    rare = put("e-1", reason="rare")
    with valkey.pipeline() as pipeline:
        for _ in range(LOOKED_AT + PAGE):
            pipeline.xadd("d", {"event": b"x", "reason": "common"})
        pipeline.execute()
    found, before = page(letters, Wanted(reason="rare"), "", 10)
    assert found == []
    assert before is not None
    found, before = page(letters, Wanted(reason="rare"), before, 10)
    assert [letter.letter_id for letter in found] == [rare]
    assert before is None


def test_letters_that_come_while_all_are_replayed_are_left_for_the_next_time(letters: DeadLetters, put: Put) -> None:
    first = [put(f"e-{n}") for n in range(3)]
    seen: list[DeadLetter] = []
    for letter in oldest_first(letters, Wanted()):
        seen.append(letter)
        put(f"again-{letter.letter_id}")
    assert [letter.letter_id for letter in seen] == first
    assert letters.count() == 6


def test_only_what_is_named_is_discarded(letters: DeadLetters, put: Put, valkey: redis.Redis) -> None:
    letter_ids = [put(f"e-{n}") for n in range(3)]
    outcome = discard(letters, [letter_ids[0], "1-1", letter_ids[2]])
    assert (outcome.discarded, outcome.gone) == ([letter_ids[0], letter_ids[2]], ["1-1"])
    assert [letter.letter_id for letter in oldest_first(letters, Wanted())] == [letter_ids[1]]
    assert list(valkey.hgetall("d:index")) == [b"e-1"]
    assert discard(letters, letter_ids).discarded == [letter_ids[1]]
