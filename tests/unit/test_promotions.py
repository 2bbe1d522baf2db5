"""Windows, audiences, stacking and exclusive promotions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.columns import PromotionKind, Segment
from app.domain.money import SCALE
from app.domain.promotions import NEAR_MS
from app.domain.sheet import PriceSheet, SegmentPrices
from tests.unit.strategies import HOUR, NOON, Batch, batch, batches, policy, promotion, row

FIXED, AMOUNT, PERCENT = PromotionKind.FIXED, PromotionKind.AMOUNT, PromotionKind.PERCENT


def prices(some: Batch) -> list[list[int]]:
    return [
        [sheet.base_price, *(tier.final for segment in (sheet.everyone, sheet.member) for tier in segment.tiers)]
        for sheet in some.sheets()
    ]


def offered(*promotions: dict[str, int], as_of: int = NOON, **fields: int) -> PriceSheet:
    (sheet,) = batch([row(**fields)], promotions=list(promotions)).at(as_of).sheets()
    return sheet


def of(sheet: PriceSheet, segment: Segment) -> SegmentPrices:
    return sheet.member if segment is Segment.MEMBER else sheet.everyone


def applied(sheet: PriceSheet, segment: Segment = Segment.EVERYONE) -> list[str]:
    return [change.rule or "" for change in of(sheet, segment).changes]


def rejected(sheet: PriceSheet, segment: Segment = Segment.EVERYONE) -> dict[str, str]:
    return {rule.rule: rule.reason for rule in of(sheet, segment).rejected}


def paid(sheet: PriceSheet, segment: Segment = Segment.EVERYONE) -> int:
    return of(sheet, segment).promoted // SCALE


@given(batches(), st.integers(0, 10 * NEAR_MS))
def test_a_promotions_end_restores_the_price(some: Batch, later: int) -> None:
    ended = some.at(NOON + later)
    still = some.rules.promotions["ends_at"] > ended.as_of
    assert prices(ended) == prices(ended.with_rules(promotions=some.rules.promotions[still]))


@given(batches(), st.integers(0, 10 * NEAR_MS))
def test_a_promotion_that_has_not_started_does_not_move_a_price(some: Batch, earlier: int) -> None:
    early = some.at(NOON - earlier)
    started = some.rules.promotions["starts_at"] <= early.as_of
    assert prices(early) == prices(early.with_rules(promotions=some.rules.promotions[started]))


@given(batches(max_rows=3), st.data())
def test_a_sheet_holds_until_it_says_and_not_a_millisecond_longer(some: Batch, data: st.DataObject) -> None:
    for nth, sheet in enumerate(some.sheets()):
        single = some.rows([nth])
        end = sheet.valid_until or NOON + 1_000 * NEAR_MS
        assert end > some.as_of
        until = data.draw(st.one_of(st.just(end - 1), st.integers(some.as_of, end - 1)))
        assert prices(single.at(until)) == prices(single)
        if sheet.valid_until is not None:
            (before,), (after,) = single.at(end - 1).sheets(), single.at(end).sheets()
            assert (before.everyone, before.member) != (after.everyone, after.member)


@given(batches(), st.integers(0, 4))
def test_one_promotion_less_never_makes_a_price_lower(some: Batch, nth: int) -> None:
    fewer = some.with_rules(promotions=np.delete(some.rules.promotions, slice(nth, nth + 1)))
    with_all, without = prices(some), prices(fewer)
    for all_of_row, fewer_of_row in zip(with_all, without, strict=True):
        assert all(lower <= higher for lower, higher in zip(all_of_row, fewer_of_row, strict=True))


@given(batches())
def test_every_promotion_of_a_row_is_either_applied_or_rejected_with_a_reason(some: Batch) -> None:
    for sheet in some.sheets():
        seen = [
            sorted([*applied(sheet, segment), *(rule.rule for rule in of(sheet, segment).rejected)])
            for segment in Segment
        ]
        assert seen[0] == seen[1]
        assert len(set(seen[0])) == len(seen[0])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 20_000))
def test_a_percentage_is_rounded_half_up_to_the_unit_and_kept_whole_for_the_line(off: int, listed: int) -> None:
    def promoted(line_rounding: int) -> int:
        (sheet,) = batch(
            [row(list_price=listed)], [policy(line_rounding=line_rounding)], [promotion(value=off)]
        ).sheets()
        return sheet.everyone.promoted

    exact = listed * (SCALE - off)
    assert promoted(line_rounding=1) == exact
    assert promoted(line_rounding=0) % SCALE == 0
    assert -SCALE < 2 * (exact - promoted(line_rounding=0)) <= SCALE or 2 * (promoted(0) - exact) == SCALE


def test_stackable_promotions_apply_by_priority_and_then_in_the_order_they_were_made() -> None:
    sheet = offered(
        promotion(3, priority=1, kind=AMOUNT, value=100),
        promotion(1, priority=2, kind=PERCENT, value=5_000),
        promotion(2, priority=1, kind=PERCENT, value=1_000),
    )
    assert applied(sheet) == ["pro-2", "pro-3", "pro-1"]
    assert paid(sheet) == 400


def test_the_best_exclusive_promotion_applies_alone_where_it_beats_the_stack() -> None:
    sheet = offered(
        promotion(1, value=1_000),
        promotion(2, stackable=0, kind=FIXED, value=800),
        promotion(3, stackable=0, kind=FIXED, value=700),
    )
    assert (applied(sheet), paid(sheet)) == (["pro-3"], 700)
    assert rejected(sheet) == {"pro-1": "exclusive_was_better", "pro-2": "exclusive_was_better"}


def test_a_tie_goes_to_the_stack() -> None:
    sheet = offered(promotion(1, value=2_000), promotion(2, stackable=0, kind=FIXED, value=800))
    assert (applied(sheet), rejected(sheet)) == (["pro-1"], {"pro-2": "stack_was_better"})


def test_of_equally_good_exclusive_promotions_the_first_by_priority_wins() -> None:
    sheet = offered(
        promotion(1, stackable=0, kind=FIXED, value=800, priority=7),
        promotion(2, stackable=0, kind=AMOUNT, value=200, priority=3),
        promotion(3, stackable=0, kind=PERCENT, value=2_000, priority=3),
    )
    assert applied(sheet) == ["pro-2"]


@pytest.mark.parametrize("stackable", [0, 1])
def test_a_fixed_price_above_the_price_has_no_effect(stackable: int) -> None:
    sheet = offered(promotion(kind=FIXED, value=1_000, stackable=stackable))
    assert (paid(sheet), rejected(sheet)) == (1_000, {"pro-1": "no_effect"})


def test_money_off_stops_at_nothing() -> None:
    assert paid(offered(promotion(kind=AMOUNT, value=1_001))) == 0


def test_a_promotion_for_members_leaves_everyone_elses_price_alone() -> None:
    sheet = offered(promotion(segment=Segment.MEMBER))
    assert (paid(sheet), paid(sheet, Segment.MEMBER)) == (1_000, 900)
    assert (rejected(sheet), applied(sheet, Segment.MEMBER)) == ({"pro-1": "other_segment"}, ["pro-1"])


@pytest.mark.parametrize(
    ("as_of", "price", "reasons", "valid_until"),
    [
        (NOON - 1, 1_000, {"pro-1": "not_started"}, NOON),
        (NOON, 900, {}, NOON + HOUR),
        (NOON + HOUR - 1, 900, {}, NOON + HOUR),
        (NOON + HOUR, 1_000, {"pro-1": "ended"}, None),
        (NOON + HOUR + NEAR_MS - 1, 1_000, {"pro-1": "ended"}, None),
        (NOON + HOUR + NEAR_MS, 1_000, {}, None),
    ],
)
def test_a_window_holds_from_its_start_up_to_its_end(
    as_of: int, price: int, reasons: dict[str, str], valid_until: int | None
) -> None:
    sheet = offered(promotion(starts_at=NOON, ends_at=NOON + HOUR), as_of=as_of)
    assert (paid(sheet), rejected(sheet), sheet.valid_until) == (price, reasons, valid_until)


def test_the_next_of_many_boundaries_is_named() -> None:
    sheet = offered(
        promotion(1, ends_at=NOON + 3 * HOUR),
        promotion(2, starts_at=NOON + HOUR, ends_at=NOON + 2 * HOUR),
        promotion(3, ends_at=NOON - HOUR),
    )
    assert sheet.valid_until == NOON + HOUR
