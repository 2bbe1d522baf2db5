"""Buffer, batcher, retry and breaker of a pipeline against plain references; and at the end the books are right."""

from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain.account import Account
from app.domain.parcel import Parcel
from app.errors import Conflict, InvalidInput, Overloaded, Unavailable
from app.pipeline.batcher import Batcher, Limits
from app.pipeline.buffer import Buffer, WhenFull
from app.pipeline.outlet import SENT_AT_ONCE, WAITING, Outlet
from app.pipeline.retry import Patience, Retry
from app.services.breaker import Breaker


class BufferMachine(RuleBasedStateMachine):
    """A buffer beside a list of what should be in it, and lists of what became of everything else."""

    @initialize(policy=st.sampled_from(WhenFull), capacity=st.integers(1, 5))
    def begin(self, policy: WhenFull, capacity: int) -> None:
        self.policy, self.capacity = policy, capacity
        self.spilled: list[int] = []
        spill = self.spilled.extend if policy is WhenFull.SPILL else None
        self.buffer = Buffer[int](capacity, policy, spill)
        self.model: deque[int] = deque()
        self.put_so_far = self.rejected = 0
        self.taken: list[int] = []
        self.dropped: list[int] = []
        self.model_spilled: list[int] = []

    @rule()
    def put(self) -> None:
        item, full = self.put_so_far, len(self.model) == self.capacity
        if full and self.policy is WhenFull.REJECT:
            with pytest.raises(Overloaded):
                self.buffer.put(item)
            self.rejected += 1
            return
        self.put_so_far += 1
        if full and self.policy is WhenFull.DROP_NEWEST:
            assert not self.buffer.put(item)
            self.dropped.append(item)
            return
        if full and self.policy is WhenFull.DROP_OLDEST:
            self.dropped.append(self.model.popleft())
        if full and self.policy is WhenFull.SPILL:
            self.model_spilled += [self.model.popleft() for _ in range(max(1, self.capacity // 2))]
        assert self.buffer.put(item)
        self.model.append(item)

    @rule(count=st.integers(0, 6))
    def take(self, count: int) -> None:
        taken = self.buffer.take(count)
        assert taken == [self.model.popleft() for _ in range(min(count, len(self.model)))]
        self.taken += taken

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert self.buffer.items() == list(self.model)
        assert self.spilled == self.model_spilled
        assert self.buffer.rejected == self.rejected
        assert self.buffer.account() == Account(
            accepted=self.put_so_far,
            delivered=len(self.taken) + len(self.spilled),
            dropped=len(self.dropped),
            pending=len(self.model),
        )
        assert self.buffer.account().missing == 0


class BatcherMachine(RuleBasedStateMachine):
    """A batcher beside one that looks at each item by itself."""

    @initialize(
        records=st.integers(1, 5), most_bytes=st.none() | st.integers(1, 30), age=st.none() | st.integers(1, 20),
        interval=st.none() | st.integers(1, 20),
    )  # fmt: skip
    def begin(self, records: int, most_bytes: int | None, age: int | None, interval: int | None) -> None:
        self.limits, self.now = Limits(records, most_bytes, age, interval), 100
        size_of: Callable[[bytes], int] | None = len if most_bytes is not None else None
        self.batcher = Batcher[bytes](self.limits, lambda: self.now, size_of)
        self.model: list[bytes] = []
        self.oldest_at = self.batch_at = self.now
        self.put: list[bytes] = []
        self.given: list[bytes] = []

    @rule(sizes=st.lists(st.integers(0, 12), max_size=12))
    def add(self, sizes: list[int]) -> None:
        items = [bytes(size) for size in sizes]
        expected: list[list[bytes]] = []
        for item in items:
            full = self.limits.bytes is not None and sum(map(len, self.model)) + len(item) > self.limits.bytes
            if self.model and full:
                expected.append(self._end())
            if not self.model:
                self.oldest_at = self.now
            self.model.append(item)
            if len(self.model) == self.limits.records or sum(map(len, self.model)) >= (self.limits.bytes or 10**9):
                expected.append(self._end())
        assert self.batcher.add(items) == expected
        self.put += items
        self.given += [item for batch in expected for item in batch]
        for batch in expected:
            assert 0 < len(batch) <= self.limits.records
            assert self.limits.bytes is None or len(batch) == 1 or sum(map(len, batch)) <= self.limits.bytes

    @rule(ms=st.integers(0, 15))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule()
    def flush_when_due(self) -> None:
        ends = [
            start + after
            for start, after in ((self.oldest_at, self.limits.age_ms), (self.batch_at, self.limits.interval_ms))
            if after is not None
        ]
        due = max(0, min(ends) - self.now) if ends and self.model else None
        assert self.batcher.due_in_ms() == due
        if due == 0:
            expected = self._end()
            assert self.batcher.flush() == expected
            self.given += expected

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "batcher"):
            assert len(self.batcher) == len(self.model)
            assert self.given + self.model == self.put

    def _end(self) -> list[bytes]:
        batch, self.model, self.batch_at = self.model, [], self.now
        return batch


FAILURES = [Unavailable("away"), Overloaded("full", 1), Conflict("later"), ConnectionError(), TimeoutError()]
outcomes = st.lists(st.sampled_from([*FAILURES, InvalidInput("no"), ZeroDivisionError(), None]), min_size=1, max_size=8)


@given(outcomes, st.integers(1, 5), st.floats(0.01, 3), st.floats(1, 4), st.floats(0, 1))
def test_only_what_may_pass_is_tried_again_and_never_without_end(
    outcomes: list[Exception | None], tries: int, first_s: float, longest_s: float, luck: float
) -> None:
    waits: list[float] = []
    left = iter(outcomes)
    seen: list[Exception | None] = []

    def do() -> str:
        seen.append(next(left, None))
        if seen[-1] is not None:
            raise seen[-1]
        return "done"

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    retry = Retry(Patience(tries, first_s, longest_s), wait, lambda low, high: low + (high - low) * luck)
    expected = next((error for error in outcomes[: tries] if error not in FAILURES), outcomes[tries - 1 : tries][0]
                    if len(outcomes) >= tries else None)  # fmt: skip
    if expected is None:
        assert retry.call(do) == "done"
    else:
        with pytest.raises(type(expected)):
            retry.call(do)
    assert len(seen) <= tries
    assert len(waits) == len(seen) - 1
    for nth, (waited, error) in enumerate(zip(waits, seen, strict=False)):
        asked = getattr(error, "retry_after_s", 0)
        bound = min(first_s * 2**nth, max(first_s, longest_s)) if nth else first_s
        assert asked <= waited <= asked + bound + 1e-9


def test_what_asks_for_more_time_than_there_is_is_left_to_who_comes_later() -> None:
    waits: list[float] = []
    retry = Retry(Patience(tries=5, longest_s=2), lambda seconds: bool(waits.append(seconds)))

    def busy() -> None:
        raise Overloaded("full", retry_after_s=30)

    with pytest.raises(Overloaded):
        retry.call(busy)
    assert waits == []


def test_a_process_that_ends_does_not_try_again() -> None:
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Retry(Patience(tries=5), lambda seconds: True).call(fail)
    assert tries == 1


class FakeDisk:
    """A spill with room for so many parcels."""

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        self.room = 10**9

    @property
    def records(self) -> int:
        return sum(parcel.records for parcel in self.parcels)

    def append(self, parcels: Sequence[Parcel], *, sync: bool = False) -> int:
        fit = max(0, min(len(parcels), self.room - len(self.parcels)))
        self.parcels += parcels[:fit]
        return fit

    def oldest(self, count: int) -> list[Parcel]:
        return self.parcels[:count]

    def confirm(self, count: int) -> None:
        del self.parcels[:count]

    def adopt(self) -> int:
        return 0


class OutletMachine(RuleBasedStateMachine):
    """An outlet whose stream is there, away, full, or takes things without saying so: everything accepted arrives, but
    what was dropped and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.stream: list[int] = []
        self.state = "there"
        self.disk = FakeDisk()
        self.fates: list[tuple[Parcel, bool | None]] = []
        self.outlet = Outlet(
            self, self.disk, Breaker("stream", 1, 100, lambda: self.now), lambda *fate: self.fates.append(fate)
        )
        self.put_so_far = 0

    def add(self, parcels: Sequence[Parcel]) -> None:
        if self.state == "away":
            raise Unavailable("away")
        if self.state == "full":
            raise Overloaded("full")
        if self.state == "broken":
            raise ZeroDivisionError
        self.stream += [int(parcel.fields[b"n"]) for parcel in parcels]
        if self.state == "silent":
            raise TimeoutError

    @rule(count=st.integers(0, 5) | st.integers(WAITING - 1, WAITING + 3), records=st.integers(1, 3))
    def put(self, count: int, records: int) -> None:
        parcels = [Parcel({b"n": b"%d" % (self.put_so_far + n)}, records) for n in range(count)]
        self.put_so_far += count
        self.outlet.put(parcels)

    @rule(count=st.integers(0, 3))
    def put_and_wait(self, count: int) -> None:
        parcels = [Parcel({b"n": b"%d" % (self.put_so_far + n)}, 1) for n in range(count)]
        self.put_so_far += count
        self.outlet.put_and_wait(parcels)
        told = {int(parcel.fields[b"n"]) for parcel, _ in self.fates}
        assert told >= set(range(self.put_so_far - count, self.put_so_far))

    @rule()
    def hurry(self) -> None:
        self.outlet.hurry()
        assert self.outlet.account().pending == 0

    @rule()
    def send(self) -> None:
        self.outlet.send()

    @rule()
    def replay(self) -> None:
        self.outlet.replay()

    @rule(state=st.sampled_from(["there", "away", "full", "broken", "silent"]))
    def become(self, state: str) -> None:
        self.state = state

    @rule(ms=st.integers(1, 200))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(room=st.integers(0, 100))
    def limit_the_disk(self, room: int) -> None:
        self.disk.room = room

    @precondition(lambda self: self.put_so_far)
    @rule()
    def bring_everything_home(self) -> None:
        self.state, self.now = "there", self.now + 200
        while self.outlet.send() or self.outlet.replay():
            pass
        dropped = {int(parcel.fields[b"n"]) for parcel, fate in self.fates if fate is None}
        assert set(self.stream) | dropped == set(range(self.put_so_far))
        assert self.outlet.account().pending == 0

    @invariant()
    def the_books_are_right(self) -> None:
        account = self.outlet.account()
        assert account.missing == 0, account
        assert len({id(parcel) for parcel, _ in self.fates}) == len(self.fates), "each has one fate"

    def teardown(self) -> None:
        self.outlet.close(Parcel({b"n": b"-1"}, 0))
        assert self.outlet.account().missing == 0
        assert self.outlet.account().pending == 0


def test_what_still_waits_after_a_while_is_spilled() -> None:
    machine = OutletMachine()
    machine.put(3, 1)
    machine.hurry()
    machine.put(2, 1)
    assert len(machine.disk.parcels) == 3
    assert machine.outlet.send()
    assert machine.stream == [3, 4]


def test_new_ones_do_not_wait_for_what_was_spilled() -> None:
    machine = OutletMachine()
    machine.state = "away"
    for _ in range(50):
        machine.put(SENT_AT_ONCE, 1)
        machine.send()
    machine.state, machine.now = "there", 1_000
    machine.put(1, 1)
    assert machine.outlet.send()
    assert machine.stream == [50 * SENT_AT_ONCE]
    assert machine.outlet.replay()
    assert machine.stream[1:] == list(range(SENT_AT_ONCE)), "the oldest first"


SETTINGS = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestBuffer = BufferMachine.TestCase
TestBatcher = BatcherMachine.TestCase
TestOutlet = OutletMachine.TestCase
TestBuffer.settings = TestBatcher.settings = TestOutlet.settings = SETTINGS
