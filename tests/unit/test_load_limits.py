"""Load tests: how latencies are kept, what breaches a limit, what an old price is, how many users a shape has."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from loadtests.checks import Freshness, Outdated, dearer_for_members, inexact, wrong
from loadtests.limits import BadLimits, Limits, breaches, limits_of
from loadtests.popularity import Draw, popularity
from loadtests.record import READS, STALENESS, Record, Tally, bucket
from loadtests.shapes import SHAPES, share_at
from loadtests.table import change, lines

KEPT = Limits(p95_ms=10, p99_ms=20, failure_share=0.01, staleness_s=2)
QUESTION = {"product_id": "P-1", "user_location": "NY", "is_prime_member": True, "quantity": 3}


def quote(**changes: Any) -> dict[str, Any]:
    return {
        "product_id": "P-1",
        "location": "NY",
        "segment": "member",
        "quantity": 3,
        "list_price": Decimal("10.00"),
        "base_price": Decimal("10.00"),
        "final_price": Decimal("9.50"),
        "total": Decimal("28.50"),
        "rounding_scope": "unit",
        "adjustments": [{"amount": Decimal("-0.50")}],
        "source": "cache",
        "version": 7,
        "valid_until": None,
    } | changes


def record(*measured: tuple[str, float, Exception | None]) -> Record:
    kept = Record()
    for name, ms, problem in measured:
        kept.note(name=name, response_time=ms, exception=problem)
    return kept


def test_a_right_quote_has_nothing_wrong() -> None:
    assert wrong(quote(), QUESTION) is None
    assert inexact(quote()) is None


@pytest.mark.parametrize(
    "lie",
    [
        {"product_id": "P-2"},
        {"segment": "everyone"},
        {"quantity": 1},
        {"final_price": Decimal("9.51"), "total": Decimal("28.53")},
        {"adjustments": []},
        {"total": Decimal("28.51")},
        {"source": "simulation"},
        {"list_price": Decimal("-1.00"), "final_price": Decimal("-1.50"), "total": Decimal("-4.50")},
    ],
)
def test_a_quote_that_is_wrong_in_anything_is_found_out(lie: dict[str, Any]) -> None:
    assert wrong(quote(**lie), QUESTION) is not None


def test_a_line_may_carry_fractions_and_no_more() -> None:
    line = {"rounding_scope": "line", "total": Decimal("28.52")}
    assert wrong(quote(**line), QUESTION) is None
    assert wrong(quote(**line | {"total": Decimal("28.53")}), QUESTION) is not None


def test_amounts_have_the_decimals_of_their_currency() -> None:
    assert inexact(quote(base_price=Decimal("10.0"))) is not None
    assert inexact(quote(list_price=10)) is not None


def test_members_pay_no_more_for_the_same_version() -> None:
    dear, cheap = quote(final_price=Decimal(9)), quote(final_price=Decimal(8))
    assert dearer_for_members(everyone=cheap, member=dear)
    assert not dearer_for_members(everyone=dear, member=cheap)
    assert not dearer_for_members(everyone=cheap, member=dear | {"version": 8})


def test_an_old_version_may_be_read_for_as_long_as_the_bound_and_no_longer() -> None:
    freshness = Freshness(2)
    assert freshness.outdated(quote(version=1), sent_at=100) is None
    assert freshness.outdated(quote(version=2), sent_at=101) is None
    assert freshness.outdated(quote(version=1), sent_at=102.9) is None
    assert freshness.outdated(quote(version=1), sent_at=103.1) is not None
    assert freshness.outdated(quote(version=2), sent_at=103.1) is None
    assert freshness.outdated(quote(version=1, location="LA"), sent_at=103.1) is None


def test_a_price_that_changes_all_the_time_has_no_excuse_for_an_old_one() -> None:
    freshness = Freshness(2)
    for second in range(10):
        assert freshness.outdated(quote(version=second), sent_at=100 + second) is None
    assert freshness.outdated(quote(version=7), sent_at=109.5) is None
    assert freshness.outdated(quote(version=5), sent_at=109.5) is not None


def test_a_stale_answer_and_a_price_past_its_time_are_old() -> None:
    freshness = Freshness(2)
    assert freshness.outdated(quote(source="stale"), sent_at=100, age_s=2) is None
    assert freshness.outdated(quote(source="stale"), sent_at=100, age_s=3) is not None
    past = quote(valid_until="1970-01-01T00:01:40Z")
    assert freshness.outdated(past, sent_at=101) is None
    assert freshness.outdated(past, sent_at=103) is not None


@pytest.mark.parametrize(("ms", "kept"), [(0.234, 0.23), (9.876, 9.88), (12.34, 12.3), (123.4, 123), (1234, 1230)])
def test_a_latency_keeps_three_digits_or_hundredths(ms: float, kept: float) -> None:
    assert bucket(ms) == kept


def test_shares_are_of_all_processes_and_seconds() -> None:
    master, workers = Record(), [Record(), Record()]
    for n, worker in enumerate(workers):
        for ms in range(1, 51):
            worker.note(READS, ms * 2 - n, None)
        master.put(worker.taken())
        assert worker.whole([READS]).count == 0
    whole = master.whole([READS])
    assert [whole.ms(share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert Tally().ms(0.5) is None
    assert sum(tally.count for _, tally in master.seconds(READS)) == 100


def test_what_is_kept_is_no_breach() -> None:
    good = [(READS, 9.9, None)] * 100 + [(STALENESS, 1999, None)]
    assert breaches(KEPT, record(*good)) == []
    assert breaches(KEPT, record(*good, (READS, 1, AssertionError("wrong")))) == []


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        ([(READS, 10.1, None)] * 6 + [(READS, 1, None)] * 94, "p95_ms: 10.10 ms"),
        ([(READS, 21, None)] * 2 + [(READS, 1, None)] * 98, "p99_ms: 21.00 ms"),
        ([(READS, 1, None)] * 98 + [(READS, 1, AssertionError("wrong"))] * 2, "failure_share: 2 of 100"),
        ([(READS, 1, None), (STALENESS, 2010, None)], "staleness_s: an event took 2.01 s"),
        ([(READS, 1, None)] * 99 + [(READS, 1, Outdated("old"))], "staleness_s: 1 answers were older"),
        ([("another", 1, None)], "no price was read"),
        ([], "no price was read"),
    ],
)
def test_a_breach_is_named(measured: list[tuple[str, float, Exception | None]], named: str) -> None:
    (sentence,) = breaches(KEPT, record(*measured))
    assert sentence.startswith(named)


def test_every_scenario_has_limits_and_may_have_its_own(tmp_path: Path) -> None:
    assert all(
        limits_of(scenario).failure_share == 0
        for scenario in ("steady", "flash-sale", "cold", "storm", "recalculation")
    )
    file = tmp_path / "limits.toml"
    file.write_text("[every]\np95_ms=1\np99_ms=2\nfailure_share=0\nstaleness_s=3\n[storm]\np99_ms=9\n")
    assert limits_of("steady", file) == Limits(1, 2, 0, 3)
    assert limits_of("storm", file) == Limits(1, 9, 0, 3)


@pytest.mark.parametrize(
    "content",
    ["", "[every]\np95_ms=1", "nonsense", "[every]\np95_ms=1\np99_ms=2\nfailure_share=0\nstaleness_s=3\np75_ms=1",
     "[every]\np95_ms='1'\np99_ms=2\nfailure_share=0\nstaleness_s=3"],
)  # fmt: skip
def test_limits_that_cannot_be_used_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(content)
    with pytest.raises(BadLimits, match=r"limits\.toml"):
        limits_of("steady", file)


def test_the_popular_are_asked_for_more_often() -> None:
    counts = popularity("sample")
    assert len(counts) == 2700
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    draw = Draw({("P-1", "NY"): 99, ("P-2", "NY"): 1})
    drawn = [draw() for _ in range(1000)]
    assert 900 < drawn.count(("P-1", "NY")) < 1000


def users(shape: str) -> list[float]:
    return [round(share_at(shape, second, 100), 2) for second in (0, 20, 39, 40, 59, 60, 80, 99)]


def test_shapes_have_their_shape() -> None:
    assert users("steady") == [1] * 8
    assert users("ramp") == [0, 0.25, 0.49, 0.5, 0.74, 0.75, 1, 1]
    assert users("spike") == [0.25, 0.25, 0.25, 1, 1, 0.25, 0.25, 0.25]
    assert users("soak") == [0, 0.4, 0.78, 0.8, 1, 1, 1, 1]
    assert set(SHAPES) == {"steady", "ramp", "spike", "soak"}


def test_each_figure_stands_beside_that_of_the_run_before() -> None:
    seen = {"p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "p999_ms": 4.0, "max_ms": 5.0}
    now = {"per_s": 900, "reads": seen, "staleness": seen, "outdated": 0, "failed": 2, "requests": 1000,
           "limits": vars(KEPT)}  # fmt: skip
    then = now | {"per_s": 600, "reads": seen | {"p99_ms": 6.0}}
    shown = {name: (value, before, limit) for name, value, before, limit in lines(now, then)}
    assert shown["quotes a second"] == (900, 600, None)
    assert shown["a quote, p99, ms"] == (3.0, 6.0, 20)
    assert shown["an event to its price, longest, ms"] == (5.0, 5.0, 2000)
    assert shown["failures of 1,000"] == (2, 2, 10)
    assert {before for _, _, before, _ in lines(now, None)} == {None}
    assert (change(900, 600), change(3.0, 6.0), change(1.0, None), change(1.0, 0)) == ("+50%", "-50%", "", "")
