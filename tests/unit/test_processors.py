"""Which processors each API process has."""

import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processors import free_part, keep_to

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says who runs where")


def kept(part: int, of: int, among: set[int]) -> set[int]:
    """Where a process of a part may run."""
    now = among
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: now)

        def keep(process: int, to: list[int]) -> None:
            nonlocal now
            now = set(to)

        patch.setattr(os, "sched_setaffinity", keep)
        keep_to(part, of)
    return now


@given(st.integers(1, 70), st.sets(st.integers(0, 200), min_size=1, max_size=40))
def test_every_processor_is_as_much_used_as_any_other(of: int, among: set[int]) -> None:
    shares = [kept(part, of, among) for part in range(of)]
    users = Counter(processor for share in shares for processor in share)
    assert set(users) == among
    assert all(shares)
    assert len(set(users.values())) == 1
    if 1 < of <= len(among):
        assert set(users.values()) == {1}, "nobody has another one's"


def test_processors_that_went_away_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {10_000, 10_001})
    keep_to(0, 2)
    monkeypatch.undo()
    assert os.sched_getaffinity(0) == before


class Workers:
    """Those of gunicorn, by age, with their parts: where there are too many, the oldest leave."""

    def __init__(self, number: int) -> None:
        self.number, self.age = number, 0
        self.parts: dict[int, int | None] = {}

    def spawn(self, number: int) -> None:
        for _ in range(number):
            self.age += 1
            self.parts[self.age] = free_part(self.number, self.parts)

    def reload(self, number: int) -> None:
        self.number = number
        self.spawn(number)
        self.dismiss()

    def dismiss(self) -> None:
        for age in sorted(self.parts)[: max(0, len(self.parts) - self.number)]:
            del self.parts[age]


@given(st.lists(st.tuples(st.sampled_from(["reload", "more", "fewer", "death"]), st.integers(1, 9)), max_size=12))
def test_no_two_processes_have_the_same_part_whatever_happened(steps: list[tuple[str, int]]) -> None:
    workers = Workers(3)
    workers.spawn(3)
    for step, number in steps:
        if step == "reload":
            workers.reload(number)
        elif step == "more":
            workers.number += 1
            workers.spawn(1)
        elif step == "fewer":
            workers.number = max(1, workers.number - 1)
            workers.dismiss()
        else:
            del workers.parts[sorted(workers.parts)[number % len(workers.parts)]]
            workers.spawn(1)
        assert len(set(workers.parts.values())) == len(workers.parts) == workers.number


def test_a_reload_to_this_release_finds_processes_without_parts() -> None:
    workers = Workers(2)
    workers.parts, workers.age = {1: None, 2: None}, 2
    workers.reload(2)
    assert sorted(map(str, workers.parts.values())) == ["0", "1"]
