"""Which of a source's requests are kept: against a plain set of numbers."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.arrivals import DAY_US, placed_us
from app.domain.record_ranges import Range, Ranges
from app.errors import InvalidInput
from tests.support.records import DAY, MS, NOON, Source, record

EPOCH = datetime(2026, 11, 22, tzinfo=UTC)


def span(first: int, last: int) -> Range:
    return Range(first, last, EPOCH + timedelta(seconds=first), EPOCH + timedelta(seconds=last))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12).flatmap(
        lambda sizes: st.lists(st.sampled_from(range(len(sizes))), max_size=30).map(lambda order: (sizes, order))
    )
)
def test_batches_in_any_order_and_again_make_the_ranges_of_what_has_come(drawn: tuple[list[int], list[int]]) -> None:
    sizes, order = drawn
    firsts = [1 + sum(sizes[:nth]) for nth in range(len(sizes))]
    ranges, expected = Ranges(), set[int]()
    for nth in order:
        numbers = set(range(firsts[nth], firsts[nth] + sizes[nth]))
        assert ranges.add(span(min(numbers), max(numbers))) == (not numbers <= expected)
        expected |= numbers
        kept = list(ranges)
        assert [n for each in kept for n in range(each.first, each.last + 1)] == sorted(expected)
        assert all(b.first > a.last + 1 for a, b in itertools.pairwise(kept)), "ranges that touch are one"
        assert all(each == span(each.first, each.last) for each in kept), "with the times of all that is in them"


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9), st.integers(0, 9))
def test_batches_that_overlap_without_being_the_same_are_refused(first: int, more: int, other: int, its: int) -> None:
    ranges = Ranges([span(first, first + more)])
    there, new = set(range(first, first + more + 1)), set(range(other, other + its + 1))
    if there & new and not new <= there:
        with pytest.raises(InvalidInput, match="overlap"):
            ranges.add(span(other, other + its))
        assert list(ranges) == [span(first, first + more)]
    else:
        ranges.add(span(other, other + its))


def test_what_is_to_be_stored_is_what_has_changed() -> None:
    ranges = Ranges([span(1, 3), span(7, 9), span(20, 29)])
    ranges.add(span(4, 6))
    assert ranges.gone() == [span(1, 3), span(7, 9)]
    assert ranges.new() == [span(1, 9)]


def test_a_request_of_another_year_is_placed_where_its_record_arrived() -> None:
    source, arrived_ms = Source(), NOON // MS
    times = [NOON - 399 * DAY, NOON + DAY, 0, NOON - 401 * DAY, NOON + DAY + 1000, 7_258_118_400 * 10**9]
    placed, misdated = placed_us(source.batch(*map(record, times)), arrived_ms, kept_days=400)
    assert placed == [(NOON - 399 * DAY) // 1000, NOON // 1000 + DAY_US] + [NOON // 1000] * 4
    assert misdated == 4
