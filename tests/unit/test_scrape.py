"""What is read from scrapes: sums, what was counted since, quantiles, and the picture of `pricing top` made of them."""

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from rich.console import Console

from app.commands.top_looks import Look, Queues
from app.commands.top_picture import drawn
from app.domain.task import Task, TaskState
from app.observability.scrape import Scrape, parse
from app.services.ports import BreakerState, Tally

COUNTERS = """\
# TYPE pricing_quotes_total counter
pricing_quotes_total{source="near_cache"} %d
pricing_quotes_total{source="database"} %d
"""


def of_histogram(*seconds: float) -> Scrape:
    registry = CollectorRegistry()
    histogram = Histogram("took_seconds", "Any.", ["route"], buckets=(0.1, 0.2, 1.0), registry=registry)
    for value in seconds:
        histogram.labels("/a").observe(value)
    return parse(generate_latest(registry).decode())


def test_sums_are_over_all_labels_that_are_not_named() -> None:
    scrape = parse(COUNTERS % (30, 12))
    assert scrape.sum("pricing_quotes_total") == 42
    assert scrape.sum("pricing_quotes_total", source="database") == 12
    assert scrape.by("pricing_quotes_total", "source") == {"near_cache": 30, "database": 12}
    assert scrape.sum("another_total") == 0


def test_a_counter_that_began_anew_is_counted_from_nothing() -> None:
    since = parse(COUNTERS % (5, 20)).since(parse(COUNTERS % (30, 12)))
    assert since.by("pricing_quotes_total", "source") == {"near_cache": 5, "database": 8}


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.15), (1.0, 0.2)])
def test_quantiles_lie_on_a_line_within_their_bucket(share: float, expected: float) -> None:
    assert of_histogram(0.05, 0.05, 0.15, 0.15).quantile("took_seconds", share, route="/a") == pytest.approx(expected)


def test_a_quantile_beyond_all_buckets_is_the_last_bound_and_of_nothing_there_is_none() -> None:
    assert of_histogram(5.0).quantile("took_seconds", 0.99) == 1.0
    assert of_histogram(0.05).quantile("took_seconds", 0.5, route="/b") is None
    assert of_histogram(0.05).quantile("other_seconds", 0.5) is None


def shown(look: Look) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(drawn(look))
    return captured.get()


def test_shares_and_rates_are_those_of_the_interval_and_of_all() -> None:
    before, after = parse(COUNTERS % (100, 100)), parse(COUNTERS % (190, 110))
    picture = shown(Look("http://x", datetime.now(UTC), after, after.since(before), 2.0))
    assert "near cache 90.0 % 63.3 % 190" in " ".join(picture.split())
    assert "database 10.0 % 36.7 % 110" in " ".join(picture.split())


def test_a_running_recalculation_has_its_speed_and_the_time_that_is_left() -> None:
    task = Task(task_id="t-1", state=TaskState.RUNNING, done=500, total=2_000, rate=20.0, eta_seconds=75.0)
    picture = shown(Look("http://x", datetime.now(UTC), tasks=[task]))
    (line,) = [line for line in picture.splitlines() if "t-1" in line]
    assert line.split()[:2] == ["t-1", "running"]
    assert line.split()[-4:] == ["500", "2,000", "20", "1:15"]


def test_a_breaker_that_is_open_says_why() -> None:
    breakers = {
        "cache": Tally(BreakerState.OPEN, 0, 5, "Redis is away"),
        "postgresql": Tally(BreakerState.CLOSED, 1, 0, ""),
    }
    picture = shown(Look("http://x", datetime.now(UTC), queues=Queues(3, 2, 1, 45.0, 7, breakers, ["products:1"])))
    for said in (
        "breaker cache open: Redis is away",
        "locks held 1 products:1",
        "oldest unapplied 45.0 s",
        "dead letters 7",
    ):
        assert said in " ".join(picture.split())
    assert "postgresql" not in picture
