"""Which processors each API process has."""

import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.processors import Share, keep_to, next_share


def shares(of: int, among: set[int]) -> list[Share]:
    """Of as many processes as there are to be, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda process: among, raising=False)
        taken: list[Share] = []
        for _ in range(of):
            taken.append(next_share(of, taken))
        return taken


@given(st.integers(1, 40), st.sets(st.integers(0, 200), min_size=1, max_size=40))
def test_all_processors_are_used_and_equally(of: int, among: set[int]) -> None:
    taken = shares(of, among)
    assert set().union(*taken) == among
    users = Counter(processor for share in taken for processor in share)
    assert max(users.values()) - min(users.values()) <= 1
    assert all(taken)
    if of <= len(among):
        assert set(users.values()) == {1}, "nobody has another one's"


def test_who_replaces_one_has_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4, 5}, raising=False)
    first, second = frozenset({0, 4}), frozenset({1, 5})
    assert next_share(2, []) == first
    assert next_share(2, [first]) == second
    assert next_share(2, [second]) == first
    # A reload begins the new ones before the old ones have left.
    assert next_share(2, [first, second]) == first
    assert next_share(2, [first, second, first]) == second


def test_processors_that_went_away_are_no_error() -> None:
    before = os.sched_getaffinity(0)
    keep_to(frozenset({10_000}))
    keep_to(frozenset())
    assert os.sched_getaffinity(0) == before
