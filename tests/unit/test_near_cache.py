"""What a near cache may answer, and what it must have forgotten."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.columns import MEMBER, Segment
from app.domain.quote import quote
from app.domain.sheet import decode_sheet, encode_sheet
from app.services.near_cache import NearCache
from app.services.slots import UNKNOWN, Name, Slot, place
from tests.unit.strategies import batch, promotion, row

(SHEET,) = batch([row()], promotions=[promotion()]).sheets()
NAME: Name = (SHEET.product_id, SHEET.location)
OTHER: Name = ("P-2", "LA")
SILENCE_MS = 2_000
FOREVER = 10**15


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def slot(version: int, fresh_until: int = FOREVER, checked_at: int = 0) -> Slot:
    sheet = msgspec.structs.replace(SHEET, version=version)
    return Slot(version, checked_at, fresh_until, b"there is none" if version == UNKNOWN else encode_sheet(sheet))


def near(capacity: int = 10) -> tuple[NearCache, Clock]:
    """A near cache that has just heard its feed."""
    clock = Clock()
    made = NearCache(capacity, SILENCE_MS, clock)
    made.heard(0)
    return made, clock


def keep(cache: NearCache, version: int = 1, name: Name = NAME, fresh_until: int = FOREVER) -> None:
    cache.put(name, slot(version, fresh_until), FOREVER, cache.epoch)


def version(cache: NearCache, name: Name = NAME, now: int = 0) -> int | None:
    """What would be answered; on the way, that nothing else is at hand."""
    entry = cache.fresh(name, now)
    for segment in Segment if cache.trusted else ():
        sheet = cache.at_hand(place(name), segment, now)
        if sheet is not None:
            assert entry is not None
            whole = decode_sheet(entry.slot(name).payload)
            assert (whole.product_id, whole.location) == name
            assert quote(*name, sheet, segment, 1, "cache") == quote(*name, whole, segment, 1, "cache")
    return None if entry is None else entry.version


def at_hand(cache: NearCache, now: int) -> int | None:
    sheet = cache.at_hand(place(NAME), MEMBER, now)
    return None if sheet is None else sheet.version


def test_nothing_is_kept_before_the_feed_is_heard() -> None:
    cache = NearCache(10, SILENCE_MS, Clock())
    keep(cache)
    assert len(cache) == 0


def test_what_is_kept_is_answered_until_it_expires() -> None:
    cache, _ = near()
    keep(cache, fresh_until=100)
    assert (version(cache, now=99), version(cache, now=100)) == (1, None)
    assert cache.last_known(NAME) == slot(1, 100)


def test_what_is_known_is_at_hand_until_it_should_be_refreshed_give_or_take_a_second() -> None:
    cache, _ = near()
    cache.put(NAME, slot(7), 100_500, cache.epoch)
    assert [at_hand(cache, now) for now in (0, 99_499, 100_500)] == [7, 7, None]
    assert version(cache, now=100_500) == 7
    cache.put(NAME, slot(UNKNOWN), FOREVER, cache.epoch)
    assert at_hand(cache, 0) is None


@given(st.integers(0, 10**13), st.integers(2, 5_000))
def test_what_lives_for_seconds_is_at_hand_for_all_of_them(now: int, life_ms: int) -> None:
    """Also where no second begins in its life."""
    cache, _ = near()
    cache.put(NAME, slot(1, now + life_ms, checked_at=now), now + life_ms - 1, cache.epoch)
    assert at_hand(cache, now) == at_hand(cache, now + life_ms - 2) == 1
    assert at_hand(cache, now + life_ms - 1) is None


def test_silence_up_to_the_bound_is_trusted_and_not_a_millisecond_more() -> None:
    cache, clock = near()
    keep(cache)
    clock.now = SILENCE_MS
    assert version(cache) == 1
    clock.now += 1
    assert version(cache) is None


def test_what_was_kept_before_a_silence_is_not_trusted_after_it_but_still_known() -> None:
    cache, clock = near()
    keep(cache)
    clock.now = SILENCE_MS + 1
    cache.heard(clock.now)
    assert cache.trusted
    assert version(cache) is None
    assert cache.last_known(NAME) == slot(1)
    keep(cache)
    assert version(cache) == 1


def test_a_heartbeat_vouches_for_the_time_when_it_was_sent_not_when_it_came() -> None:
    cache, clock = near()
    keep(cache)
    clock.now = 1_500
    cache.heard(400)
    clock.now = 400 + SILENCE_MS
    assert version(cache) == 1
    clock.now += 1
    assert version(cache) is None
    cache.heard(401)
    assert version(cache) is None


def test_a_late_heartbeat_does_not_take_back_what_a_later_one_vouched_for() -> None:
    cache, clock = near()
    keep(cache)
    clock.now = 1_000
    cache.heard(900)
    cache.heard(100)
    clock.now = 900 + SILENCE_MS
    assert version(cache) == 1


def test_a_lost_feed_is_distrusted_at_once() -> None:
    cache, clock = near()
    keep(cache)
    cache.lost()
    assert not cache.trusted
    assert version(cache) is None
    cache.heard(clock.now)
    assert version(cache) is None


def test_what_was_read_before_the_feed_was_lost_is_not_kept_after_it_is_back() -> None:
    cache, clock = near()
    before = cache.epoch
    cache.lost()
    cache.heard(clock.now)
    cache.put(NAME, slot(1), FOREVER, before)
    assert version(cache) is None


def test_an_update_takes_away_what_it_replaces_and_nothing_newer() -> None:
    cache, _ = near()
    keep(cache, 5)
    cache.told(NAME, 4)
    assert version(cache) == 5
    cache.told(NAME, 6)
    assert version(cache) is None


def test_the_creation_of_a_product_takes_away_that_it_was_unknown() -> None:
    cache, _ = near()
    keep(cache, UNKNOWN)
    cache.told(NAME, 1)
    assert version(cache) is None


def test_what_was_read_before_an_update_was_told_is_not_kept_after_it() -> None:
    cache, clock = near()
    with cache.reading([NAME]):
        with cache.reading([NAME, OTHER]):
            cache.told(NAME, 2)
        for clock.now in (0, 9_000, 60_000):
            cache.heard(clock.now)
            keep(cache, 1)
            assert version(cache) is None
        keep(cache, 2)
        assert version(cache) == 2


def test_an_older_update_that_is_told_late_does_not_make_its_sheet_welcome() -> None:
    cache, _ = near()
    with cache.reading([NAME]):
        cache.told(NAME, 3)
        cache.told(NAME, 2)
        keep(cache, 2)
        assert version(cache) is None


def test_what_is_told_matters_only_for_what_is_at_hand_or_being_read() -> None:
    cache, _ = near()
    keep(cache)
    with cache.reading([OTHER]):
        assert [cache.concerned(place(name)) for name in (NAME, OTHER, ("P-3", "NY"))] == [True, True, False]
    assert not cache.concerned(place(OTHER))


def test_an_answer_that_was_overtaken_does_not_replace_a_newer_one() -> None:
    cache, _ = near()
    keep(cache, version=5)
    keep(cache, version=4)
    assert version(cache) == 5


def test_of_a_sheet_and_that_there_is_none_the_one_that_was_checked_later_stays() -> None:
    cache, _ = near()
    cache.put(NAME, slot(5, checked_at=10), FOREVER, cache.epoch)
    cache.put(NAME, slot(UNKNOWN, checked_at=9), FOREVER, cache.epoch)
    assert version(cache) == 5
    cache.put(NAME, slot(UNKNOWN, checked_at=11), FOREVER, cache.epoch)
    assert version(cache) == UNKNOWN


def test_after_the_feed_was_lost_what_is_read_then_counts_even_if_it_is_older() -> None:
    cache, _ = near()
    keep(cache, version=5)
    cache.lost()
    cache.heard(0)
    keep(cache, version=4)
    assert version(cache) == 4


def test_rows_that_change_again_and_again_keep_their_room_and_no_more() -> None:
    cache, _ = near(capacity=3)
    rows: list[Name] = [(f"P-{n}", "NY") for n in range(3)]
    for number in range(1, 10):
        for name in rows:
            cache.told(name, number)
            keep(cache, number, name)
        assert len(cache) == 3
        assert [version(cache, name) for name in rows] == [number] * 3
    cache.told(rows[0], 10)
    assert (len(cache), [len(part) for part in cache.hits(2)]) == (2, [1, 1])
    keep(cache, 1, OTHER)
    assert (len(cache), version(cache, OTHER)) == (3, 1)


@pytest.mark.parametrize("kept", [1, UNKNOWN])
def test_each_answer_is_one_hit_also_where_there_is_no_price(kept: int) -> None:
    cache, _ = near()
    keep(cache, version=kept)
    for _ in range(3):
        if at_hand(cache, 0) is None:  # so the endpoint is asked
            cache.fresh(NAME, 0)
    ((_, entry),) = next(cache.hits(10))
    assert entry.hits == 3


def test_clearing_forgets_also_what_would_be_served_stale() -> None:
    cache, _ = near()
    before = cache.epoch
    keep(cache)
    cache.clear()
    assert (len(cache), cache.last_known(NAME)) == (0, None)
    cache.put(NAME, slot(1), FOREVER, before)
    assert cache.last_known(NAME) is None


def test_without_capacity_nothing_is_kept() -> None:
    cache, _ = near(capacity=0)
    keep(cache)
    assert len(cache) == 0


def test_what_is_asked_for_stays_when_others_have_to_go() -> None:
    cache, _ = near(capacity=3)
    for n in range(3):
        keep(cache, name=(f"P-{n}", "NY"))
    for _ in range(4):
        assert version(cache, ("P-0", "NY")) == 1
    keep(cache, name=("P-9", "NY"))
    assert version(cache, ("P-0", "NY")) == 1
    assert version(cache, ("P-1", "NY")) is None
    assert version(cache, ("P-9", "NY")) == 1


names = st.sampled_from([("P-1", "NY"), ("P-2", "NY"), ("P-3", "NY")])
steps = st.one_of(
    st.tuples(st.just("put"), names, st.integers(1, 5)),
    st.tuples(st.just("told"), names, st.integers(1, 5)),
    st.tuples(st.just("ask"), names, st.integers(0, 0)),
    st.tuples(st.just("lost"), names, st.integers(0, 0)),
    st.tuples(st.just("wait"), names, st.integers(0, 1500)),
)


@given(st.integers(0, 3), st.lists(steps, max_size=40))
def test_nothing_older_than_what_was_told_is_ever_answered_and_the_bound_is_kept(
    capacity: int, taken: list[tuple[str, Name, int]]
) -> None:
    """Whatever is put was read before all that is told."""
    cache, clock = near(capacity)
    told = dict.fromkeys([name for _, name, _ in taken], 0)
    with cache.reading(list(told)):
        for step, name, n in taken:
            if step == "put":
                keep(cache, n, name)
            elif step == "told":
                cache.told(name, n)
                told[name] = max(told[name], n)
            elif step == "lost":
                cache.lost()
                cache.heard(clock.now)
            elif step == "wait":
                clock.now += n
                cache.heard(clock.now)
            else:
                assert (version(cache, name) or 10) >= told[name]
            assert len(cache) == sum(map(len, cache.hits(2))) <= capacity
