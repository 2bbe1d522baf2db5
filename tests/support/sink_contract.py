"""What every sink of a pipeline must pass: a class to inherit from, with a fixture `end` of one's own.

Records are told apart by their `user_id`, which the contract makes unique.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import pytest
import redis

from app.adapters.breakers import Breakers, SinkBreaker
from app.adapters.redis_clients import make_redis
from app.adapters.stream_group import StreamGroup
from app.bootstrap import now_ms
from app.domain.account import Account
from app.domain.stream_entry import StreamEntry
from app.domain.telemetry import RecordBatch, RequestRecord, decode_batch, encode_batch
from app.errors import TRANSIENT, Unavailable
from app.pipeline.consumer import Consumer, Decoded, Terms
from app.pipeline.retry import Patience, Retry
from app.pipeline.sinks import Sink
from app.services.ports import BreakerState
from tests.support.waiting import eventually

STREAM, GROUP = "contract", "sink"
STARTED_NS = 1_790_000_000_000_000_000  # 2026-09-21
MAX_ATTEMPTS = 3


class End(Protocol):
    """A sink and what it writes to."""

    def open(self) -> Sink[RecordBatch]:
        """The sink, as another process has it."""
        ...

    def written(self) -> Counter[str]:
        """The user ids that arrived for good, and how often each."""
        ...

    def away(self) -> AbstractContextManager[None]:
        """What it writes to does not answer meanwhile."""
        ...


def batch_of(source: str, first: int, count: int) -> RecordBatch:
    return RecordBatch(source, 1, first, [_record(source, first + n) for n in range(count)])


def users(*batches: RecordBatch) -> Counter[str]:
    return Counter(record.user_id for batch in batches for record in batch.records)


def _record(source: str, number: int) -> RequestRecord:
    return RequestRecord(
        STARTED_NS + number * 1_000_000, 1_500_000 + number, "POST", "/api/v1/price", 200, 123, "192.0.2.7",
        "key-1", f"{source}/{number}", "0af7651916cd43dd8448eb211c80319c", False,
    )  # fmt: skip


def _decode(entry: StreamEntry) -> Decoded[RecordBatch]:
    batch = decode_batch(entry.fields.get(b"batch", b""))
    return Decoded(batch, len(batch.records))


class _Settling:
    """A group whose consumer dies after the sink has written and before it could say so."""

    def __init__(self, group: StreamGroup) -> None:
        self._group = group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def settle(self, records: Mapping[str, int]) -> int:
        raise SystemExit


class _Altered:
    """A sink that does something before it writes."""

    def __init__(self, sink: Sink[RecordBatch], before: Callable[[Sequence[RecordBatch]], object]) -> None:
        self._sink, self._before = sink, before

    def write(self, items: Sequence[RecordBatch]) -> None:
        self._before(items)
        self._sink.write(items)


class SinkContract:
    @pytest.fixture
    def end(self) -> End:
        raise NotImplementedError("give the sink that is to pass")

    @pytest.fixture(autouse=True)
    def _set_up(self, valkey_url: str, end: End) -> Iterator[None]:
        self.end = end
        with make_redis(valkey_url, timeout_s=5, repeats=False) as client:
            self.client: redis.Redis = client
            self.group = self.group_of()
            self.group.ensure()
            self.breaker = SinkBreaker(Breakers(client), "telemetry_postgresql")
            yield
            account = self.group.account()
            assert account.missing == 0, account

    def group_of(self) -> StreamGroup:
        return StreamGroup(self.client, STREAM, GROUP)

    def add(self, *batches: RecordBatch) -> None:
        for batch in batches:
            fields: dict[Any, Any] = {
                "source": batch.source, "first": batch.first, "count": len(batch.records), "batch": encode_batch(batch),
            }  # fmt: skip
            self.client.xadd(STREAM, fields)

    def consumer(
        self,
        name: str = "one",
        sink: Sink[RecordBatch] | None = None,
        group: Any = None,
        stopping: Callable[[], bool] = lambda: False,
        **terms: Any,
    ) -> Consumer[RecordBatch]:
        return Consumer(
            name,
            group or self.group_of(),
            _decode,
            sink or self.end.open(),
            self.breaker,
            retry=Retry(Patience(tries=1), wait=lambda seconds: False),
            clock=now_ms,
            stopping=stopping,
            terms=Terms(**{"reclaim_idle_s": 0.05, "max_attempts": MAX_ATTEMPTS, **terms}),
        )

    def work_off(self, consumer: Consumer[RecordBatch]) -> None:
        """Turn by turn until nothing is pending, however often the breaker opens meanwhile."""

        def done() -> bool:
            consumer.work(turn_s=5)
            return self.group.account().pending == 0

        eventually(done, timeout_s=30)

    def test_what_was_accepted_is_there_once_and_counted(self) -> None:
        batches = [batch_of("a", 1, 512), batch_of("b", 1, 3), batch_of("a", 513, 1)]
        self.add(*batches)
        assert not self.consumer().work(turn_s=30), "nothing is left to do"
        assert self.end.written() == users(*batches)
        assert self.group.account() == Account(accepted=3, delivered=3)
        assert self.group.records() == 516

    def test_what_came_before_changes_nothing_also_in_other_company(self) -> None:
        first, second, third = (batch_of("a", n, 10) for n in (1, 11, 21))
        self.add(first, second, second, third, first)
        self.consumer(read_count=2).work(turn_s=30)
        self.end.open().write([third, first])
        assert self.end.written() == users(first, second, third)

    def test_a_consumer_that_dies_between_write_and_acknowledgement_leads_to_nothing_twice(self) -> None:
        batches = [batch_of("a", n * 100 + 1, 100) for n in range(3)]
        self.add(*batches)
        with pytest.raises(SystemExit):
            self.consumer("dies", group=_Settling(self.group)).work(turn_s=30)
        assert self.group.account().pending == 3
        self.work_off(self.consumer("takes over"))
        assert self.end.written() == users(*batches)
        assert self.group.account() == Account(accepted=3, delivered=3)

    def test_a_slow_sink_holds_up_nobody_else_and_is_not_taken_for_done(self) -> None:
        batch = batch_of("a", 1, 20)
        self.add(batch)
        begun, goes_on = threading.Event(), threading.Event()

        def wait(items: Sequence[RecordBatch]) -> None:
            begun.set()
            assert goes_on.wait(30)

        slow = self.consumer(sink=_Altered(self.end.open(), wait), reclaim_idle_s=60)
        turn = threading.Thread(target=slow.work, args=(5,))
        turn.start()
        assert begun.wait(30)
        other = StreamGroup(self.client, STREAM, "another")
        other.ensure()
        assert len(other.read("its own", 10)) == 1
        assert self.group.account() == Account(accepted=1, pending=1)
        goes_on.set()
        turn.join()
        assert self.end.written() == users(batch)
        assert self.group.account() == Account(accepted=1, delivered=1)

    def test_what_a_sink_that_is_away_could_not_take_waits_in_the_stream(self) -> None:
        batches = [batch_of("a", n * 10 + 1, 10) for n in range(30)]
        consumer = self.consumer(read_count=2)
        with self.end.away():
            self.add(*batches)

            def is_open() -> bool:
                try:
                    consumer.work(turn_s=5)
                except TRANSIENT:
                    return False
                return self.breaker.let_through() is BreakerState.OPEN

            eventually(is_open, timeout_s=60)
            account = self.group.account()
            assert (account.pending, account.dead) == (30, 0)
            assert self.group.lag().unread >= 20, "nothing is read that could not be written"

        def done() -> bool:
            try:
                consumer.work(turn_s=5)
            except TRANSIENT:
                return False
            return self.group.account().pending == 0

        eventually(done, timeout_s=60)
        assert self.end.written() == users(*batches)
        assert self.group.account() == Account(accepted=30, delivered=30)

    def test_a_poisonous_record_ends_alone_and_can_be_replayed(self) -> None:
        good, poison = [batch_of("good", n * 10 + 1, 10) for n in range(12)], batch_of("poison", 1, 10)
        self.add(*good[:6], poison, *good[6:])

        def refuse(items: Sequence[RecordBatch]) -> None:
            if poison in items:
                raise ZeroDivisionError("a defect")

        consumer = self.consumer(sink=_Altered(self.end.open(), refuse))
        eventually(lambda: self._turn(consumer) and self.group.account().dead == 1)
        assert self.end.written() == users(*good)
        assert self.group.account() == Account(accepted=13, delivered=12, dead=1)
        (letter,) = self.group.letters()
        assert letter.setback.attempts == MAX_ATTEMPTS
        assert letter.setback.last_error == "ZeroDivisionError: a defect"
        replaying = self.consumer()
        assert replaying.replay(letter)
        assert not replaying.replay(letter), "of two who replay it, one did"
        assert self.end.written() == users(*good, poison)
        assert self.group.account() == Account(accepted=13, delivered=13)

    def test_what_is_no_batch_is_set_aside_at_once(self) -> None:
        batch = batch_of("a", 1, 10)
        self.client.xadd(STREAM, {"source": "a", "batch": b"?"})
        self.add(batch)
        assert not self.consumer().work(turn_s=30)
        assert self.end.written() == users(batch)
        assert self.group.account() == Account(accepted=2, delivered=1, dead=1)
        assert [letter.reason for letter in self.group.letters()] == ["malformed"]

    def test_told_to_stop_it_ends_after_the_write_in_hand_and_another_does_the_rest(self) -> None:
        batches = [batch_of("a", n * 10 + 1, 10) for n in range(9)]
        self.add(*batches)
        writes = 0

        def count(items: Sequence[RecordBatch]) -> None:
            nonlocal writes
            writes += 1

        leaving = self.consumer(sink=_Altered(self.end.open(), count), stopping=lambda: writes >= 1, read_count=2)
        assert leaving.work(turn_s=60), "there is more to do"
        assert writes == 1
        assert self.group.account() == Account(accepted=9, delivered=2, pending=7)
        assert not self.consumer("another").work(turn_s=60)
        assert self.end.written() == users(*batches)
        assert self.group.account() == Account(accepted=9, delivered=9)

    def _turn(self, consumer: Consumer[RecordBatch]) -> bool:
        with suppress(Unavailable):  # the breaker has opened
            consumer.work(turn_s=5)
        return True
