"""What becomes of batches: nothing is lost, nothing is applied twice, and only what is hopeless is set aside."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psycopg
import pytest
import redis

from app.adapters.breakers import APPLYING, WORK_LIMITS, Breakers
from app.adapters.database import make_engine
from app.adapters.event_log import EventLog
from app.adapters.event_names import Names
from app.adapters.inbox import Inboxes
from app.adapters.locks import Locks
from app.adapters.price_cache import Lifetimes, PriceCache
from app.adapters.store import Store, Transaction
from app.adapters.stream_group import StreamGroup
from app.bootstrap import now_ms
from app.domain.events import Event, EventType, decode_event, encode_event
from app.domain.money import SCALE
from app.domain.sheet import EncodedSheet
from app.errors import LockLost, MalformedEvent, Unavailable
from app.services.delivery import Delivered, deliver
from app.services.ports import DIED, BreakerState, Held
from tests.support.sheets import spelled_out

NAMES = Names(stream="s", channel="c", group="g", dead_letters="d")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

POISON = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'unforeseen'; END $$;
    CREATE TRIGGER poison BEFORE INSERT ON processed_events
        FOR EACH ROW WHEN (NEW.event_id LIKE 'poison%') EXECUTE FUNCTION fail()
"""
ANTIDOTE = "DROP TRIGGER poison ON processed_events"


@dataclass
class Cache:
    """Keeps what it was given; `error` is raised instead, once."""

    prices: dict[tuple[str, str], int] = field(default_factory=dict)
    error: Exception | None = None

    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        for sheet in sheets:
            price = spelled_out(sheet.payload).everyone.tiers[0].final // SCALE
            self.prices[sheet.product_id, sheet.location] = price


class Queue:
    def recalculate(self, task_id: str, part: int | None = None) -> None: ...


@dataclass
class Service:
    """Listener and worker of one scope, step by step."""

    store: Store
    valkey: redis.Redis
    database_url: str
    max_attempts: int = 5
    cache: Any = field(default_factory=Cache)

    def __post_init__(self) -> None:
        self.inboxes, self.breakers = Inboxes(self.valkey, NAMES), Breakers(self.valkey)
        self.locks, self.log = Locks(self.valkey, 30), EventLog(self.valkey, NAMES)
        self.log.ensure_group()

    def read(self, *events: Event | bytes) -> list[str]:
        """Published and read, but in no inbox yet; their stream ids."""
        for event in events:
            self.valkey.xadd("s", {"event": encode_event(event) if isinstance(event, Event) else event})
        return [
            entry.stream_id
            for entry in StreamGroup(self.valkey, NAMES.stream, NAMES.group).read("listener", len(events))
        ]

    def receive(self, *events: Event | bytes, scope: str = "a") -> list[str]:
        stream_ids = self.read(*events)
        self.inboxes.put({scope: stream_ids}, "hint")
        return stream_ids

    def turn(self, before: Callable[[Held], object] = lambda held: None) -> list[Delivered]:
        """Work off what can be worked off now, as a task does."""
        delivered: list[Delivered] = []

        def work(held: Held) -> bool:
            batch = self.inboxes.take(held, 500)
            events, malformed = {}, {}
            for waiting in batch:
                try:
                    events[waiting.stream_id] = decode_event(waiting.event)
                except MalformedEvent as error:
                    malformed[waiting.stream_id] = str(error)
            before(held)
            if batch:
                delivered.append(
                    deliver(
                        held,
                        batch,
                        events,
                        malformed,
                        inboxes=self.inboxes,
                        breakers=self.breakers,
                        store=self.store,
                        cache=self.cache,
                        queue=Queue(),
                        clock=now_ms,
                        max_attempts=self.max_attempts,
                    )
                )
            return bool(batch)

        self.locks.in_rounds("a", work, 60, self.inboxes.taking("a", 500))
        return delivered

    def turns(self, most: int = 100) -> list[Delivered]:
        """Until nothing is left, with the time of every next try come at once."""
        delivered: list[Delivered] = []
        while self.fall_due() or "a" in self.inboxes.waiting():
            delivered += self.turn()
            most -= 1
            assert most, "still not done"
        return delivered

    def fall_due(self, at_ms: int = 0) -> bool:
        """As if this were the time of every suspect's next try; whether there is one."""
        suspects = self.valkey.zrange("suspects:a", 0, -1)
        if suspects:
            self.valkey.zadd("suspects:a", dict.fromkeys(suspects, at_ms))
        return bool(suspects)

    def letters(self) -> list[dict[str, str]]:
        return [
            {name.decode(): value.decode() for name, value in letter.items()} for _, letter in self.valkey.xrange("d")
        ]

    def pending(self) -> list[str]:
        return [entry["message_id"].decode() for entry in self.valkey.xpending_range("s", "g", "-", "+", 10_000)]

    def failures(self) -> int:
        return int(self.valkey.hlen("s:failures"))

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database_url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def processed(self) -> set[str]:
        return {str(event_id) for (event_id,) in self.sql("SELECT event_id FROM processed_events")}


@pytest.fixture
def service(store: Store, valkey: redis.Redis, database_url: str) -> Service:
    return Service(store, valkey, database_url)


def price(event_id: str, amount: float, subject: str = "P-1", location: str = "NY", **attributes: object) -> Event:
    return Event(
        id=event_id, type=EventType.LIST_PRICE_CHANGED, subject=subject, location=location, data={"amount": amount},
        **attributes,
    )  # fmt: skip


def policy(event_id: str, policy_id: str) -> Event:
    """A policy for all of New York."""
    data = {"policy": {"policy_id": policy_id, "name": policy_id, "kind": "list", "location": "NY"}}
    return Event(id=event_id, type=EventType.POLICY_CHANGED, data=data)


def removal(event_id: str, policy_id: str) -> Event:
    return Event(id=event_id, type=EventType.POLICY_CHANGED, data={"removed": policy_id})


def test_a_batch_is_applied_cached_and_acknowledged(service: Service) -> None:
    service.receive(price("a", 1), price("b", 2), price("c", 3, "P-2"))
    (delivered,) = service.turn()
    assert (delivered.applied, delivered.repeated, delivered.letters, delivered.failed) == (3, 0, [], 0)
    assert delivered.sheets == 2
    assert service.cache.prices == {("P-1", "NY"): 200, ("P-2", "NY"): 300}
    assert (service.pending(), service.inboxes.waiting(), service.letters()) == ([], {}, [])
    assert service.breakers.tallies()[APPLYING][:3] == (BreakerState.CLOSED, 3, 0)


def test_what_can_never_be_applied_is_set_aside_at_once_and_the_rest_is_applied(service: Service) -> None:
    _, unknown, broken = service.receive(
        price("good", 1), price("unknown", 1, "nobody's", traceparent=TRACE), b'{"id": "broken"}'
    )
    (delivered,) = service.turn()
    assert (delivered.applied, len(delivered.letters), delivered.failed) == (1, 2, 0)
    by_stream_id = {letter["stream_id"]: letter for letter in service.letters()}
    assert set(by_stream_id) == {unknown, broken}
    refused, malformed = by_stream_id[unknown], by_stream_id[broken]
    assert refused["reason"] == refused["first_error"] == refused["last_error"] == "there is no \"nobody's\" at 'NY'"
    assert (refused["event_id"], refused["trace_id"], refused["attempts"]) == ("unknown", TRACE.split("-")[1], "1")
    assert abs(int(refused["last_failed_at"]) - now_ms()) < 60_000
    assert "type" in malformed["reason"]
    assert (malformed["event"], malformed["event_id"], malformed["trace_id"]) == ('{"id": "broken"}', "", "")
    assert service.pending() == []


def test_a_refusal_is_not_final_while_something_older_in_the_inbox_has_failed(service: Service) -> None:
    """The removal that makes room for the new policy is tried again later; the new policy is not to be lost for it."""
    service.sql(POISON)
    service.receive(policy("first", "old"))
    service.turn()
    service.receive(removal("poison", "old"))
    service.turn()
    service.fall_due(at_ms=10**15)
    service.receive(policy("second", "new"))
    delivered, *_ = service.turn()
    assert (delivered.applied, delivered.letters, delivered.failed) == (0, [], 1)
    service.sql(ANTIDOTE)
    service.turns()
    assert service.letters() == []
    assert service.sql("SELECT policy_id, removed FROM policies ORDER BY 1") == [("new", False), ("old", True)]


@pytest.mark.parametrize("scope", [None, "b"], ids=["in no inbox yet", "in another scope"])
def test_a_refusal_is_not_final_while_something_older_is_pending_elsewhere(service: Service, scope: str | None) -> None:
    """Another listener has read the removal before, and is slower."""
    service.receive(policy("first", "old"))
    service.turn()
    (older,) = service.read(removal("removal", "old"))
    if scope is not None:
        service.inboxes.put({scope: [older]}, "hint")
    service.receive(policy("second", "new"))
    delivered, *_ = service.turn()
    assert (delivered.letters, delivered.failed) == ([], 1)
    service.inboxes.put({"a": [older]}, "hint")
    service.turns()
    assert service.letters() == []
    assert service.processed() == {"first", "removal", "second"}


def test_a_refusal_is_final_once_nothing_older_is_pending(service: Service) -> None:
    (older,) = service.read(price("older", 1))
    service.receive(policy("first", "old"), policy("second", "new"))
    service.turn()
    for _ in range(service.max_attempts + 1):
        service.fall_due()
        service.turn()
    assert service.letters() == [], "however often it is tried"
    service.inboxes.put({"a": [older]}, "hint")
    service.turns()
    (letter,) = service.letters()
    assert letter["event_id"] == "second"
    assert int(letter["attempts"]) > service.max_attempts


def test_a_refusal_that_no_event_can_change_waits_for_nothing(service: Service) -> None:
    """Else events that are refused would wait for one another."""
    service.read(price("older", 1))
    service.receive(price("unknown", 1, "nobody's"), price("too-fine", 0.001))
    service.turn()
    assert [letter["event_id"] for letter in service.letters()] == ["unknown", "too-fine"]


def test_refusals_do_not_wait_for_what_is_newer(service: Service) -> None:
    service.receive(price("unknown", 1, "nobody's"))
    service.read(price("newer", 1))
    service.turn()
    assert [letter["event_id"] for letter in service.letters()] == ["unknown"]


@pytest.mark.parametrize("max_attempts", [5, 1])
def test_a_poisonous_event_among_hundreds_ends_alone(service: Service, max_attempts: int) -> None:
    service = replace(service, max_attempts=max_attempts)
    service.sql(POISON)
    good = [price(f"good-{n}", n + 1, "P-2", "TYO") for n in range(400)]
    service.receive(*good[:150], price("poison", 1), *good[150:])
    delivered = service.turns()
    (letter,) = service.letters()
    assert letter["event_id"] == "poison"
    assert letter["reason"] == f"{max_attempts} attempts failed"
    # Tried in company up to three times, then alone; sooner, where its company falls due at another time.
    assert int(letter["attempts"]) in {max(max_attempts, 3), max(max_attempts, 4)}
    assert letter["last_error"].endswith("unforeseen")
    assert service.processed() == {event.id for event in good}
    assert sum(d.applied for d in delivered) == 400
    assert service.cache.prices == {("P-2", "TYO"): 400}
    assert len(delivered) < 150, "the others were applied in company, though some fall due sooner than others"
    assert (service.pending(), service.failures()) == ([], 0)
    versions = service.sql("SELECT list_price FROM price_history ORDER BY version")
    assert versions == sorted(versions), "never backwards"


def test_several_poisonous_events_end_alone(service: Service) -> None:
    service.sql(POISON)
    service.receive(*[price(f"{'poison' if n % 40 == 0 else 'good'}-{n}", n + 1) for n in range(200)])
    service.turns(200)
    assert {letter["event_id"] for letter in service.letters()} == {f"poison-{n}" for n in range(0, 200, 40)}
    assert len(service.processed()) == 195
    assert service.cache.prices == {("P-1", "NY"): 20_000}


class Died(BaseException):
    """Nothing that happens in a process can stop it from ending."""


class Deadly(Store):
    """Whoever claims the event `deadly` dies of it."""

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with super().transaction() as tx:
            claim = tx.events.ask_claim

            def die(event_ids: Collection[str]) -> Callable[[], set[str]]:
                if "deadly" in event_ids:
                    raise Died
                return claim(event_ids)

            tx.events.ask_claim = die  # type: ignore[method-assign]
            yield tx


@pytest.mark.parametrize("max_attempts", [6, 1])
def test_an_event_that_processes_die_of_is_set_aside_and_the_others_are_applied(
    service: Service, database_url: str, max_attempts: int
) -> None:
    service = replace(service, store=Deadly(make_engine(database_url)), max_attempts=max_attempts)
    service.receive(*[price(f"good-{n}", n + 1) for n in range(40)], price("deadly", 1))
    deaths = 0
    for _ in range(100):
        try:
            service.turns()
            break
        except Died:
            deaths += 1
    (letter,) = service.letters()
    assert (letter["event_id"], letter["first_error"], letter["last_error"]) == ("deadly", DIED, DIED)
    assert int(letter["attempts"]) == deaths == max(max_attempts, 4)
    assert service.processed() == {f"good-{n}" for n in range(40)}
    assert service.cache.prices == {("P-1", "NY"): 4000}
    service.store.close()


def test_where_most_fails_nothing_is_set_aside_and_the_work_is_held_back(service: Service) -> None:
    service.sql(POISON)
    service.breakers.note(APPLYING, bad=WORK_LIMITS.failures - 2, reason="in other scopes")
    service.receive(*[price(f"poison-{n}", n + 1) for n in range(6)])
    for _ in range(service.max_attempts + 2):
        service.fall_due()
        service.turn()
    tally = service.breakers.tallies()[APPLYING]
    assert (tally.state, "unforeseen" in tally.reason) == (BreakerState.OPEN, True)
    assert min(json.loads(failure)["attempts"] for failure in service.valkey.hvals("s:failures")) > service.max_attempts
    assert (service.letters(), len(service.pending())) == ([], 6)
    service.sql(ANTIDOTE)
    service.breakers.reset(APPLYING)
    service.turns()
    assert (service.letters(), len(service.processed())) == ([], 6)
    assert service.cache.prices == {("P-1", "NY"): 600}


def test_malformed_events_are_not_set_aside_either_while_most_fails(service: Service) -> None:
    service.breakers.note(APPLYING, bad=100, reason="boom")
    service.receive(b"nonsense", price("unknown", 1, "nobody's"))
    delivered, *_ = service.turn()
    assert (service.letters(), delivered.failed) == ([], 2)
    service.breakers.reset(APPLYING)
    service.turns()
    assert len(service.letters()) == 2


def test_replayed_events_that_are_refused_again_hold_nobody_up(service: Service) -> None:
    many = WORK_LIMITS.failures + 10
    service.receive(*[price(f"again-{n}", 1, "nobody's", streamid="1-1") for n in range(many)], price("good", 2))
    (delivered,) = service.turn()
    assert (delivered.applied, len(service.letters())) == (1, many)
    tally = service.breakers.tallies()[APPLYING]
    assert (tally.state, tally.good, tally.bad) == (BreakerState.CLOSED, 1, 0)


def test_replayed_events_that_are_refused_again_wait_for_no_breaker(service: Service) -> None:
    service.breakers.note(APPLYING, bad=100, reason="boom")
    service.receive(price("again", 1, "nobody's", streamid="1-1"), price("new", 1, "nobody's"))
    service.turn()
    assert [letter["event_id"] for letter in service.letters()] == ["again"]


def test_what_is_refused_once_more_opens_no_breaker_and_is_set_aside_when_it_is_closed(service: Service) -> None:
    """Where it is the catalogue that is missing, nothing is set aside; and events at fault hold nobody up for long."""
    service.receive(*[price(f"unknown-{n}", 1, "nobody's") for n in range(WORK_LIMITS.failures)], b"nonsense")
    delivered, *_ = service.turn()  # on a slow machine they are due again within the turn
    assert (delivered.failed, service.letters()) == (WORK_LIMITS.failures + 1, [])
    assert service.breakers.tallies()[APPLYING].state is BreakerState.OPEN
    for _ in range(3):
        service.fall_due()
        service.turn()
    assert service.letters() == []
    service.breakers.reset(APPLYING)
    service.turns()
    assert (service.pending(), len(service.letters())) == ([], WORK_LIMITS.failures + 1)
    assert service.breakers.tallies()[APPLYING][:3] == (BreakerState.CLOSED, 0, 0)


def test_events_of_many_rows_are_applied_in_several_transactions(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these concerns two rows; whatever is left has its turn at once."""
    monkeypatch.setattr("app.services.applying.MOST_ROWS", 3)
    prices = [price(f"price-{n}", n, "*") for n in range(1, 6)]
    rules = [policy(f"rule-{n}", "p") for n in range(1, 4)]
    service.receive(*prices[:2], *rules, *prices[2:], price("price-5", 5, "*"))
    delivered = service.turn()
    assert [each.applied for each in delivered] == [4, 3, 1]
    assert sum(each.repeated for each in delivered) == 1
    assert (service.pending(), service.letters(), service.failures()) == ([], [], 0)
    assert service.processed() == {event.id for event in [*prices, *rules]}
    assert service.sql("SELECT DISTINCT amount FROM list_prices WHERE location_key = 1") == [(500,)]


def test_a_store_that_is_away_is_nobodys_fault(service: Service) -> None:
    stream_ids = service.receive(price("a", 1), b"nonsense", price("unknown", 1, "nobody's"))
    service.cache.error = Unavailable("away", upstream="cache")
    with pytest.raises(Unavailable, match="away"):
        service.turn()
    assert (service.pending(), service.failures(), service.letters()) == (stream_ids, 0, [])
    assert service.processed() == {"a"}
    (delivered,) = service.turn()
    assert (delivered.applied, delivered.repeated, len(delivered.letters)) == (0, 1, 2)
    assert service.cache.prices == {("P-1", "NY"): 100}, "the first run died before it could cache it"
    assert service.sql("SELECT count(*) FROM price_history") == [(1,)]


@pytest.mark.parametrize(
    "fault",
    [
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;"
        " CREATE TRIGGER die BEFORE INSERT ON processed_events FOR EACH ROW EXECUTE FUNCTION die()",
    ],
    ids=["a server that only reads", "a connection that is lost"],
)
def test_what_postgresql_cannot_do_now_is_nobodys_fault(service: Service, fault: str) -> None:
    stream_ids = service.receive(price("a", 1))
    name = service.sql("SELECT current_database()")[0][0]
    service.sql(fault.format(name=name))
    service.store.close()
    with pytest.raises(Unavailable) as raised:
        service.turn()
    assert raised.value.upstream == "postgresql"
    assert (service.pending(), service.failures(), service.letters()) == (stream_ids, 0, [])
    assert service.breakers.tallies()[APPLYING].bad == 0


class Full(PriceCache):
    """On a server that cannot write for as long as this one puts."""

    def put(self, sheets: Iterable[EncodedSheet]) -> None:
        self._client.config_set("min-replicas-to-write", 1)
        try:
            super().put(sheets)
        finally:
            self._client.config_set("min-replicas-to-write", 0)


def test_a_cache_that_refuses_writes_is_nobodys_fault(service: Service, valkey: redis.Redis) -> None:
    stream_ids = service.receive(price("a", 1))
    service = replace(service, cache=Full(valkey, Lifetimes(60, 60, 60), lambda keys: np.zeros(len(keys), np.int64)))
    with pytest.raises(Unavailable, match="NOREPLICAS") as raised:
        service.turn()
    assert raised.value.upstream == "cache"
    assert (service.pending(), service.failures()) == (stream_ids, 0)


class AnswerLost(Store):
    """Commits, and then the connection is lost before the answer has come."""

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with super().transaction() as tx:
            yield tx
        raise Unavailable("the connection was lost", upstream="postgresql")


def test_a_commit_whose_answer_was_lost_is_not_done_twice(service: Service, database_url: str) -> None:
    service.receive(price("a", 1), policy("rule", "new"))
    store, service.store = service.store, AnswerLost(make_engine(database_url))
    with pytest.raises(Unavailable):
        service.turn()
    service.store.close()
    service.store = store
    (delivered,) = service.turn()
    assert (delivered.applied, delivered.repeated) == (0, 2)
    assert service.cache.prices == {("P-1", "NY"): 100, ("P-2", "NY"): 1000}
    assert service.sql("SELECT count(*) FROM price_history WHERE list_price = 100") == [(1,)]


def test_whoever_lost_the_lock_writes_nothing_and_leaves_the_batch_to_the_new_holder(service: Service) -> None:
    stream_ids = service.receive(price("a", 1))

    def somebody_else_takes_over(held: Held) -> None:
        service.valkey.delete("lock:a")

        def other(new: Held) -> bool:
            with service.store.transaction() as tx:
                tx.events.check_fence("a", new.token)
            service.valkey.delete("trying:a")
            assert [w.stream_id for w in service.inboxes.take(new, 10)] == stream_ids
            return False

        service.locks.in_rounds("a", other, 10)

    with pytest.raises(LockLost):
        service.turn(before=somebody_else_takes_over)
    assert (service.processed(), service.pending(), service.failures()) == (set(), stream_ids, 0)
    assert (service.valkey.get("trying:a") or b"").split()[1:] == [stream_ids[0].encode()], "the new holder's, still"


def test_an_event_that_is_in_the_stream_twice_is_applied_once_and_acknowledged_twice(service: Service) -> None:
    service.receive(price("a", 1), price("a", 2))
    (delivered,) = service.turn()
    assert (delivered.applied, delivered.repeated) == (1, 1)
    assert (service.pending(), service.cache.prices) == ([], {("P-1", "NY"): 100})


def test_what_has_the_id_of_a_refused_event_is_not_taken_for_applied(service: Service) -> None:
    service.receive(price("a", 1.005), price("a", 2))
    service.turn()
    assert [letter["event_id"] for letter in service.letters()] == ["a", "a"]
    assert service.processed() == set()


def test_what_comes_again_from_the_dead_letters_keeps_its_first_place(service: Service) -> None:
    (first, _) = service.receive(price("monday", 1.005), price("tuesday", 2))
    service.turn()
    service.receive(price("monday", 1, streamid=first))
    (delivered,) = service.turn()
    assert (delivered.applied, service.pending()) == (1, [])
    assert service.cache.prices == {("P-1", "NY"): 200}, "what was said on Tuesday is newer"
