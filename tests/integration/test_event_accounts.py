"""The books of events: they add up whatever happens, and say so where an event is gone."""

from collections.abc import Callable
from itertools import count

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.event_accounts import Accounts, EventAccounts
from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.inbox import Inboxes
from app.adapters.locks import fence_key
from app.adapters.stream_group import StreamGroup
from app.services.ports import Failure, Fate, Letter
from tests.support.stores import Stores

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")


class Holder:
    scope = "a"

    def __init__(self, token: int) -> None:
        self.token = token

    def check(self) -> None: ...
    def take_begun(self) -> None: ...


class Books:
    """A stream, its group, an inbox, and the books of them."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.log, self.inboxes = EventLog(client, NAMES), Inboxes(client, NAMES)
        self.accounts = EventAccounts(client, NAMES)
        self.holder = Holder(client.incr(fence_key("a")))
        self.numbers = count()

    def open(self) -> "Books":
        self.log.ensure_group()
        self.accounts.begin()
        return self

    def accept(self, events: int = 1) -> None:
        for _ in range(events):
            self.client.xadd("s", {"event": str(next(self.numbers))})

    def read(self, events: int = 10) -> None:
        self.inboxes.put(
            {
                "a": [
                    entry.stream_id for entry in StreamGroup(self.client, NAMES.stream, NAMES.group).read("me", events)
                ]
            },
            "hint",
        )

    def work(self, fate: Fate, events: int = 10) -> None:
        batch = self.inboxes.take(self.holder, events)
        if fate == "failed":
            self.inboxes.fail(self.holder, [(waiting, "boom") for waiting in batch])
        elif fate == "dead":
            once = Failure(1, "e", 1, "e", 1)
            letters = [Letter(w.stream_id, w.event, "", "", "hopeless", once) for w in batch]
            self.inboxes.settle(self.holder, {}, letters)
        else:
            self.inboxes.settle(self.holder, {waiting.stream_id: fate for waiting in batch}, [])

    def look(self) -> Accounts:
        return self.accounts.read()

    def gone(self) -> int:
        """Accepted, and nowhere."""
        events = dict(self.look().events)
        return events.pop("accepted") - sum(events.values())


@pytest.fixture
def books(valkey: redis.Redis) -> Books:
    return Books(valkey).open()


def test_each_event_is_in_one_place(books: Books) -> None:
    books.accept(10)
    books.read(8)
    books.work("applied", 3)
    books.work("repeated", 1)
    books.work("dead", 2)
    assert books.look() == Accounts(
        length=10,
        groups={"g": (2, 2)},
        events={"accepted": 10, "unread": 2, "pending": 2, "applied": 3, "repeated": 1, "dead": 2, "before": 0},
    )


steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(1, 5)),
        st.tuples(st.just("read"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["applied", "repeated", "failed", "dead"]), st.integers(1, 5)),
        st.tuples(st.sampled_from(["trim", "open"]), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_the_books_add_up_whatever_happens(stores: Stores, todo: list[tuple[str, int]]) -> None:
    with redis.Redis.from_url(stores.flushed_valkey()) as client:
        books = Books(client).open()
        for what, many in todo:
            match what:
                case "accept":
                    books.accept(many)
                case "read":
                    books.read(many)
                case "trim":
                    books.log.trim()
                case "open":
                    books.open()
                case "applied" | "repeated" | "failed" | "dead":
                    books.work(what, many)
            assert books.gone() == 0


def test_what_is_settled_twice_is_in_the_books_once(books: Books) -> None:
    books.accept(2)
    books.read()
    done, dead = [waiting.stream_id for waiting in books.inboxes.take(books.holder, 2)]
    letter = Letter(dead, b"", "", "", "hopeless", Failure(1, "e", 1, "e", 1))
    for _ in range(2):
        books.inboxes.settle(books.holder, {done: "applied"}, [letter])
    assert (books.look().events["applied"], books.look().events["dead"], books.gone()) == (1, 1, 0)


def test_books_that_are_begun_late_begin_with_what_was_before(valkey: redis.Redis) -> None:
    books = Books(valkey)
    books.log.ensure_group()
    books.accept(9)
    books.read(5)
    valkey.xack("s", "g", *(waiting.stream_id for waiting in books.inboxes.take(books.holder, 3)))
    books.work("applied", 1)
    books.open()
    assert books.look().events["before"] == 3
    assert books.gone() == 0
    valkey.flushall()
    books.open()
    books.accept(1)
    assert books.gone() == 0


def acknowledge_by_hand(books: Books) -> None:
    books.client.xack("s", "g", books.inboxes.take(books.holder, 1)[0].stream_id)


def delete_a_consumer_that_holds_some(books: Books) -> None:
    books.client.xgroup_delconsumer("s", "g", "me")


def move_the_group(books: Books) -> None:
    books.client.xgroup_setid("s", "g", "$", entries_read=7)


@pytest.mark.parametrize("loss", [acknowledge_by_hand, delete_a_consumer_that_holds_some, move_the_group])
def test_an_event_that_is_gone_is_missed(books: Books, loss: Callable[[Books], None]) -> None:
    books.accept(7)
    books.read(4)
    assert books.gone() == 0
    loss(books)
    assert books.gone() > 0
