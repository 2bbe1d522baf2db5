"""Inboxes: nothing leaves them unacknowledged, and what fails takes nothing else with it."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import redis

from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.inbox import Due, Filled, HeldInbox, Inboxes
from app.adapters.locks import HINT_LIFE_S, Locks, fence_key
from app.adapters.redis_clients import make_redis
from app.adapters.stream_group import StreamGroup
from app.domain.positions import position
from app.errors import LockLost
from app.services.ports import DIED, Failure, Fate, Letter, Turn, Waiting
from tests.support.lossy import LossyClient
from tests.support.proxy import proxy_to

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")
ONCE = Failure(1, "first", 1000, "last", 2000)


@dataclass
class Holder:
    scope: str
    token: int

    def check(self) -> None: ...
    def take_begun(self) -> None: ...


Hold = Callable[..., Holder]
Arrive = Callable[..., list[str]]


@pytest.fixture
def hold(valkey: redis.Redis) -> Hold:
    """Takes a scope's lock: a new holder, with a token higher than those before."""
    return lambda scope="a": Holder(scope, valkey.incr(fence_key(scope)))


@pytest.fixture
def inboxes(valkey: redis.Redis) -> Inboxes:
    return Inboxes(valkey, NAMES)


@pytest.fixture
def read(valkey: redis.Redis) -> Arrive:
    """Adds so many entries to the stream and reads them; their ids."""
    log = EventLog(valkey, NAMES)
    log.ensure_group()

    def arrive(count: int) -> list[str]:
        for n in range(count):
            valkey.xadd("s", {"event": f"{n}"})
        return [entry.stream_id for entry in StreamGroup(valkey, NAMES.stream, NAMES.group).read("listener", count)]

    return arrive


@pytest.fixture
def arrive(inboxes: Inboxes, read: Arrive) -> Arrive:
    """Adds so many entries to the stream, and puts them into an inbox; their ids."""

    def put(count: int, scope: str = "a") -> list[str]:
        ids = read(count)
        inboxes.put({scope: ids}, "hint")
        return ids

    return put


def ids(batch: Sequence[Waiting]) -> list[str]:
    return [waiting.stream_id for waiting in batch]


def applied(stream_ids: Sequence[str]) -> dict[str, Fate]:
    return dict.fromkeys(stream_ids, "applied")


def each(batch: Sequence[Waiting], error: str = "boom") -> list[tuple[Waiting, str]]:
    return [(waiting, error) for waiting in batch]


def fall_due(valkey: redis.Redis, at_ms: int = 0, scope: str = "a") -> int:
    """As if the time of every suspect's next try had come at this moment; how many there are."""
    suspects = [stream_id for stream_id, _ in valkey.zrange(f"suspects:{scope}", 0, -1, withscores=True)]
    if suspects:
        valkey.zadd(f"suspects:{scope}", dict.fromkeys(suspects, at_ms))
    return len(suspects)


def letter(stream_id: str, event_id: str = "e") -> Letter:
    return Letter(stream_id, b"raw", event_id, "0" * 32, "hopeless", ONCE)


def pending(valkey: redis.Redis) -> list[str]:
    return [entry["message_id"].decode() for entry in valkey.xpending_range("s", "g", "-", "+", 10_000)]


def test_entries_are_taken_in_the_order_of_the_stream_however_they_came(
    inboxes: Inboxes, read: Arrive, hold: Hold
) -> None:
    first, second, third, fourth = read(4)
    inboxes.put({"a": [third, second]}, "hint")
    inboxes.put({"a": [first, fourth], "b": []}, "hint")
    holder = hold()
    batch = inboxes.take(holder, 3)
    assert ids(batch) == [first, second, third]
    assert [(w.event, w.position, w.failure) for w in batch[:1]] == [(b"0", position(first), None)]
    inboxes.settle(holder, applied(ids(batch)), [])
    assert ids(inboxes.take(holder, 3)) == [fourth]


def test_entries_of_one_millisecond_are_in_order(inboxes: Inboxes, valkey: redis.Redis, hold: Hold) -> None:
    log = EventLog(valkey, NAMES)
    log.ensure_group()
    added = [valkey.xadd("s", {"event": "x"}, id=f"1700000000000-{n}").decode() for n in (0, 1, 2, 10, 11, 4000)]
    StreamGroup(valkey, NAMES.stream, NAMES.group).read("listener", 10)
    inboxes.put({"a": added[::-1]}, "hint")
    assert ids(inboxes.take(hold(), 10)) == added


def test_a_holder_of_the_release_before_died_like_any_other(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    """It wrote down what it had in hand without its token."""
    in_hand, other = arrive(2)
    valkey.set("trying:a", in_hand)
    holder = hold()
    assert ids(inboxes.take(holder, 10)) == [other]
    inboxes.settle(holder, applied([other]), [])
    assert fall_due(valkey) == 1
    (suspect,) = inboxes.take(holder, 10)
    assert (suspect.stream_id, suspect.failure and suspect.failure.last_error) == (in_hand, DIED)


def test_putting_in_again_changes_nothing(inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis) -> None:
    suspect, done, fresh = arrive(3)
    holder = hold()
    batch = inboxes.take(holder, 2)
    inboxes.fail(holder, each(batch[:1]))
    inboxes.settle(holder, applied([done]), [])
    assert inboxes.put({"a": [suspect, done, fresh, fresh]}, "hint")["a"].waiting == 1
    assert ids(inboxes.take(holder, 10)) == [fresh], "the suspect's time has not come, and the other is acknowledged"
    assert valkey.zcard("suspects:a") == 1


def test_what_was_taken_stays_until_it_is_settled(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(2)
    holder = hold()
    assert ids(inboxes.take(holder, 10)) == arrived
    inboxes.put_back(holder)
    batch = inboxes.take(hold(), 10)
    assert (ids(batch), [w.failure for w in batch]) == (arrived, [None, None])
    assert pending(valkey) == arrived


def test_scopes_have_inboxes_of_their_own(inboxes: Inboxes, arrive: Arrive, hold: Hold) -> None:
    in_a, in_b = arrive(2, "a"), arrive(1, "b")
    assert inboxes.waiting() == {"a": Due(2, 0), "b": Due(1, 0)}
    assert ids(inboxes.take(hold("b"), 10)) == in_b
    assert ids(inboxes.take(hold("a"), 10)) == in_a


def test_what_a_dead_holder_had_in_hand_has_failed_and_the_rest_has_not(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(5)
    inboxes.take(hold(), 2)
    batch = inboxes.take(hold(), 10)
    assert ids(batch) == arrived[2:]
    assert [w.failure for w in batch] == [None] * 3
    assert fall_due(valkey) == 2
    inboxes.put_back(holder := hold())
    inboxes.settle(holder, applied(arrived[2:]), [])
    suspects = inboxes.take(holder, 10)
    assert ids(suspects) == arrived[:2]
    assert {(w.failure.attempts, w.failure.first_error, w.failure.last_error) for w in suspects if w.failure} == {
        (1, DIED, DIED)
    }


@pytest.mark.parametrize(
    "end",
    [
        lambda inboxes, holder, batch: inboxes.settle(holder, applied(ids(batch)), []),
        lambda inboxes, holder, batch: inboxes.settle(holder, {}, [letter(one) for one in ids(batch)]),
        lambda inboxes, holder, batch: inboxes.fail(holder, each(batch)),
        lambda inboxes, holder, batch: inboxes.put_back(holder),
    ],
    ids=["done", "set aside", "failed", "put back"],
)
def test_no_end_of_a_batch_looks_like_a_death(
    end: Callable[..., object], inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrive(1)
    holder = hold()
    end(inboxes, holder, inboxes.take(holder, 10))
    fall_due(valkey)
    errors = [w.failure.last_error for w in inboxes.take(hold(), 10) if w.failure]
    assert DIED not in errors


def test_suspects_are_tried_in_ever_smaller_company(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(100)
    holder = hold()
    sizes = []
    for _ in range(5):
        batch = inboxes.take(holder, 500)
        sizes.append(len(batch))
        assert {w.failure.attempts if w.failure else 0 for w in batch} == {len(sizes) - 1}, "all failed equally often"
        inboxes.fail(holder, each(batch))
        valkey.zadd("suspects:a", dict.fromkeys(arrived, 10**15))
        valkey.zadd("suspects:a", dict.fromkeys(ids(batch), 0))
    assert sizes == [100, 32, 4, 1, 1]


def test_suspects_that_have_failed_more_often_are_not_tried_in_the_company_of_others(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(6)
    holder = hold()
    batch = inboxes.take(holder, 10)
    inboxes.fail(holder, [(w._replace(failure=ONCE) if n % 2 else w, "boom") for n, w in enumerate(batch)])
    fall_due(valkey)
    assert ids(inboxes.take(holder, 10)) == arrived[::2]
    inboxes.settle(holder, applied(arrived[::2]), [])
    assert ids(inboxes.take(holder, 10)) == arrived[1::2]


def test_a_suspect_is_tried_when_its_time_has_come_and_not_before(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(2)
    holder = hold()
    inboxes.fail(holder, each(inboxes.take(holder, 10)))
    seconds, _ = valkey.time()
    valkey.zadd("suspects:a", {arrived[0]: (seconds + 60) * 1000, arrived[1]: (seconds + 60) * 1000})
    assert (inboxes.take(holder, 10), inboxes.waiting()) == ([], {})
    valkey.zadd("suspects:a", {arrived[1]: (seconds - 1) * 1000})
    assert inboxes.waiting() == {"a": Due(0, 1)}
    assert ids(inboxes.take(holder, 10)) == arrived[1:]


def test_what_is_put_in_once_more_wants_no_task_where_all_of_it_waits_for_its_next_try(
    inboxes: Inboxes, arrive: Arrive, hold: Hold
) -> None:
    arrived = arrive(2)
    holder = hold()
    inboxes.fail(holder, each(inboxes.take(holder, 10)))
    assert inboxes.put({"a": arrived}, "hint") == {"a": Filled(0, wants_task=False)}
    inboxes.settle(holder, applied(arrived), [])
    assert inboxes.put({"a": arrived}, "hint") == {"a": Filled(0, wants_task=False)}


def test_neither_suspects_nor_fresh_entries_keep_the_others_waiting(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    """Under a load that never ends the inbox is never empty."""
    (suspect,) = arrive(1)
    holder = hold()
    inboxes.fail(holder, each(inboxes.take(holder, 10)))
    fresh = arrive(2)
    arrived_at = int(fresh[0].partition("-")[0])
    fall_due(valkey, arrived_at + 1)
    assert ids(inboxes.take(holder, 1)) == fresh[:1], "it could have been taken before the suspect"
    fall_due(valkey, arrived_at - 1)
    inboxes.put_back(holder)
    assert ids(inboxes.take(holder, 10)) == [suspect]
    inboxes.settle(holder, applied([suspect]), [])
    assert ids(inboxes.take(holder, 10)) == fresh


def test_waits_have_full_jitter_and_double_up_to_a_minute(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(300)
    holder = hold()
    batch = inboxes.take(holder, 300)
    for attempts, bound_ms in ((0, 500), (1, 1000), (3, 4000), (6, 32_000), (7, 60_000), (10_000, 60_000)):
        failure = ONCE._replace(attempts=attempts) if attempts else None
        before = valkey.time()[0] * 1000
        for waiting in batch:
            inboxes.fail(holder, [(waiting._replace(failure=failure), "boom")])
        after = valkey.time()[0] * 1000 + 1000
        times = [time for _, time in valkey.zrange("suspects:a", 0, -1, withscores=True)]
        assert len(times) == len(arrived)
        assert before <= min(times) <= max(times) < after + bound_ms
        assert max(times) - min(times) > bound_ms * 0.8, "some wait next to nothing, some as long as they may"


def test_what_has_failed_together_is_tried_again_together(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrive(30)
    holder = hold()
    inboxes.fail(holder, each(inboxes.take(holder, 30)))
    assert len({time for _, time in valkey.zrange("suspects:a", 0, -1, withscores=True)}) == 1


def test_a_failure_keeps_the_first_error_and_the_last_and_is_forgotten_with_its_entry(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    (arrived,) = arrive(1)
    holder = hold()
    began = valkey.time()[0] * 1000
    for error in ("one", "two", "three"):
        inboxes.fail(holder, each(inboxes.take(holder, 10), error))
        fall_due(valkey)
    noted = json.loads(valkey.hget("s:failures", arrived) or "")
    assert (noted["attempts"], noted["first_error"], noted["last_error"]) == (3, "one", "three")
    assert began <= noted["first_failed_at"] <= noted["last_failed_at"] <= began + 60_000
    (waiting,) = inboxes.take(holder, 10)
    assert waiting.failure == Failure(**noted)
    inboxes.settle(holder, applied([arrived]), [])
    assert valkey.exists("s:failures", "suspects:a", "trying:a", "inbox:a") == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        "nonsense", "", "[]", "7", "{}", '{"attempts": "many"}', '{"attempts": -3}', '{"attempts": 1.5}', "\xff",
        '{"attempts": 1e400, "first_error": "", "first_failed_at": 0, "last_error": "", "last_failed_at": 0}',
        '{"attempts": 2, "first_error": "", "first_failed_at": 0, "last_error": "", "last_failed_at": 0, "new": 1}',
    ],
)  # fmt: skip
def test_a_note_that_cannot_be_read_stops_nothing(
    nonsense: str, inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(2)
    holder = hold()
    inboxes.fail(holder, each(inboxes.take(holder, 10)))
    fall_due(valkey)
    valkey.hset("s:failures", arrived[0], nonsense)
    batch = inboxes.take(holder, 10)
    assert arrived[0] in ids(batch)
    inboxes.fail(holder, each(batch))
    assert json.loads(valkey.hget("s:failures", arrived[0]) or "")["attempts"] >= 2


def test_a_letter_is_written_once_with_all_that_is_known(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    dead, done = arrive(2)
    holder = hold()
    inboxes.take(holder, 10)
    assert inboxes.settle(holder, applied([done]), [letter(dead)]) == 1
    assert pending(valkey) == []
    assert inboxes.settle(holder, applied([done]), [letter(dead)]) == 0
    ((letter_id, fields),) = valkey.xrange("d")
    assert {name.decode(): value.decode() for name, value in fields.items()} == {
        "event": "raw", "stream_id": dead, "event_id": "e", "reason": "hopeless", "attempts": "1",
        "first_error": "first", "first_failed_at": "1000", "last_error": "last", "last_failed_at": "2000",
        "trace_id": "0" * 32,
    }  # fmt: skip
    assert valkey.hgetall("d:index") == {b"e": letter_id}


def test_a_letter_without_an_event_id_is_in_no_index(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    (dead,) = arrive(1)
    assert inboxes.settle(hold(), {}, [letter(dead, event_id="")]) == 1
    assert valkey.exists("d:index") == 0


def test_an_entry_that_somebody_acknowledged_by_hand_is_no_dead_letter(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    (arrived,) = arrive(1)
    valkey.xack("s", "g", arrived)
    assert inboxes.settle(holder := hold(), {}, [letter(arrived)]) == 0
    assert (valkey.xlen("d"), inboxes.take(holder, 10)) == (0, [])


def test_an_entry_that_was_deleted_by_hand_comes_empty_and_can_be_set_aside(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    deleted, kept = arrive(2)
    valkey.xdel("s", deleted)
    holder = hold()
    assert [(w.stream_id, w.event) for w in inboxes.take(holder, 10)] == [(deleted, b""), (kept, b"1")]
    assert inboxes.settle(holder, applied([kept]), [letter(deleted, "")]) == 1
    assert (pending(valkey), inboxes.waiting()) == ([], {})


def test_inboxes_can_be_worked_off_when_the_stream_is_gone(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(2)
    valkey.delete("s")
    holder = hold()
    assert [w.event for w in inboxes.take(holder, 10)] == [b"", b""]
    assert inboxes.settle(holder, applied(arrived[:1]), [letter(arrived[1])]) == 0
    assert inboxes.waiting() == {}


def test_an_entry_is_not_lost_where_its_letter_cannot_be_written(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    (arrived,) = arrive(1)
    valkey.set("d", "not a stream")
    holder = hold()
    with pytest.raises(redis.ResponseError):
        inboxes.settle(holder, {}, [letter(arrived)])
    assert pending(valkey) == [arrived]
    assert ids(inboxes.take(holder, 10)) == [arrived]


def test_five_hundred_letters_are_settled_at_once(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    arrived = arrive(1000)
    holder = hold()
    assert ids(inboxes.take(holder, 1000)) == arrived
    letters = [letter(one, event_id=one) for one in arrived[::2]]
    assert inboxes.settle(holder, applied(arrived[1::2]), letters) == 500
    assert (valkey.xlen("d"), valkey.hlen("d:index"), pending(valkey), inboxes.waiting()) == (500, 500, [], {})


def test_whoever_has_lost_the_lock_changes_nothing(
    inboxes: Inboxes, arrive: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    """It was stopped for longer than its lock lives, and wakes while another is at work."""
    arrived = arrive(2)
    late = hold()
    batch = inboxes.take(late, 10)
    newer = hold()
    valkey.delete("trying:a")
    assert ids(inboxes.take(newer, 10)) == arrived
    before = {key: valkey.dump(key) for key in valkey.scan_iter()}
    for act in (
        lambda: inboxes.take(late, 10),
        lambda: inboxes.fail(late, each(batch)),
        lambda: inboxes.settle(late, applied(arrived), []),
        lambda: inboxes.settle(late, {}, [letter(arrived[0])]),
    ):
        with pytest.raises(LockLost):
            act()
    inboxes.put_back(late)
    assert {key: valkey.dump(key) for key in valkey.scan_iter()} == before


def test_the_oldest_pending_entry_may_be_anybodys(
    inboxes: Inboxes, arrive: Arrive, read: Arrive, valkey: redis.Redis
) -> None:
    assert inboxes.oldest_pending([]) is None
    in_a, in_none, in_b = *arrive(1, "a"), *read(1), *arrive(1, "b")
    assert inboxes.oldest_pending([]) == position(in_a)
    assert inboxes.oldest_pending({in_a}) == position(in_none)
    valkey.xack("s", "g", in_none)
    assert inboxes.oldest_pending({in_a}) == position(in_b)
    assert inboxes.oldest_pending({in_a, in_b}) is None


@pytest.fixture
def lossy(valkey_url: str, inboxes: Inboxes, hold: Hold) -> Iterator[LossyClient]:
    """A client that can lose answers, on a server that knows every script already."""
    inboxes.take(holder := hold("x"), 1)
    inboxes.fail(holder, [])
    inboxes.settle(holder, {}, [])
    inboxes.put_back(holder)
    inboxes.put({"x": []}, "hint")
    lossy = LossyClient(valkey_url)
    yield lossy
    lossy.client.close()


def test_an_answer_that_was_lost_does_no_harm(
    lossy: LossyClient, read: Arrive, hold: Hold, valkey: redis.Redis
) -> None:
    """Clients ask once more then, and so everything is done twice."""
    inboxes = Inboxes(lossy.client, NAMES)
    failed, done, dead = arrived = read(3)
    with lossy.losing():
        assert inboxes.put({"a": arrived}, "hint") == {"a": Filled(3, wants_task=True)}, "the hint is its own"
    holder = hold()
    with lossy.losing():
        assert ids(inboxes.take(holder, 3)) == arrived
    with lossy.losing():
        inboxes.put_back(holder)
    batch = inboxes.take(holder, 3)
    assert [w.failure for w in batch] == [None] * 3
    with lossy.losing(nth=2):
        inboxes.fail(holder, each(batch[:1]))
    assert json.loads(valkey.hget("s:failures", failed) or "")["attempts"] == 1
    assert valkey.zcard("suspects:a") == 1
    with lossy.losing():
        inboxes.settle(holder, applied([done]), [letter(dead)])
    assert valkey.xlen("d") == 1
    assert (pending(valkey), valkey.zcard("inbox:a")) == ([failed], 0)


def test_a_lock_comes_with_the_first_batch_also_where_the_answer_was_lost(
    lossy: LossyClient, arrive: Arrive, inboxes: Inboxes, valkey: redis.Redis
) -> None:
    """Asked once more, it is not as if a holder had died in between with the batch in hand."""
    arrived = arrive(3)
    locks = Locks(lossy.client, ttl_s=30)
    batches: list[list[Waiting]] = []

    def work(held: HeldInbox) -> bool:
        batches.append(inboxes.take(held, 2))
        if batches[-1]:
            assert (valkey.get("trying:a") or b"").split()[0] == b"%d" % held.token
        inboxes.settle(held, applied(ids(batches[-1])), [])
        return len(batches) < 3

    assert locks.in_rounds("x", lambda held: False, 10, inboxes.taking("x", 1)) is Turn.DONE
    with lossy.losing():
        assert locks.in_rounds("a", work, 10, inboxes.taking("a", 2)) is Turn.DONE
    assert [ids(batch) for batch in batches] == [arrived[:2], arrived[2:], []]
    assert [w.failure for batch in batches for w in batch] == [None] * 3
    assert (pending(valkey), valkey.hlen("s:failures")) == ([], 0)


def test_whoever_finds_the_lock_held_takes_nothing(inboxes: Inboxes, arrive: Arrive, valkey: redis.Redis) -> None:
    arrived = arrive(1)
    locks = Locks(valkey, ttl_s=30)

    def work(held: HeldInbox) -> bool:
        if not inboxes.take(held, 1):
            return False
        before = valkey.get("trying:a")
        assert locks.in_rounds("a", lambda held: False, 10, inboxes.taking("a", 1)) is Turn.LEFT_TO_HOLDER
        assert valkey.get("trying:a") == before
        inboxes.settle(held, applied(arrived), [])
        return False

    assert locks.in_rounds("a", work, 10, inboxes.taking("a", 1)) is Turn.DONE
    assert not valkey.exists("lock:a")


def test_an_inbox_wants_one_task_until_that_has_come(inboxes: Inboxes, read: Arrive, valkey: redis.Redis) -> None:
    first, second, third, fourth = read(4)
    both = {"a": [first], "b": [fourth]}
    assert inboxes.put(both, "1") == {"a": Filled(1, True), "b": Filled(1, True)}
    assert inboxes.put(both, "1") == {"a": Filled(1, True), "b": Filled(1, True)}, "it was perhaps not queued"
    assert inboxes.put({"a": [second]}, "2") == {"a": Filled(2, False)}
    assert 0 < valkey.pttl("hint:a") <= HINT_LIFE_S * 1000
    Locks(valkey, ttl_s=30).in_rounds("a", lambda held: False, 10)
    assert inboxes.put({"a": [third]}, "3") == {"a": Filled(3, True)}


def test_a_batch_is_put_back_when_redis_is_back(valkey_url: str, arrive: Arrive, hold: Hold) -> None:
    """Nobody is to take it for a batch whose process died."""
    (arrived,) = arrive(1)
    holder = hold()
    server = urlsplit(valkey_url)
    with proxy_to(server.port or 6379) as proxy:
        through_proxy = server._replace(netloc=server.netloc.replace(f":{server.port}", f":{proxy.port}")).geturl()
        with make_redis(through_proxy, 1) as client:
            inboxes = Inboxes(client, NAMES)
            inboxes.take(holder, 10)
            proxy.cut()
            healed = threading.Timer(0.5, proxy.heal)
            healed.start()
            inboxes.put_back(holder)
            healed.join()
            (waiting,) = inboxes.take(holder, 10)
            assert (waiting.stream_id, waiting.failure) == (arrived, None)
