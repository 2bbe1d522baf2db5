"""What must hold when all is over, however it came about."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tests.chaos.faults import POISON
from tests.chaos.fleet import STORES, Fleet
from tests.chaos.ledger import Entry, Failure, Ledger, Read, Violation
from tests.chaos.load import Client
from tests.chaos.market import DECIMALS, RULES, Event, Product, Row
from tests.chaos.oracle import Oracle
from tests.support.waiting import eventually

BATCH = 100

BOUND_S = 3.0
"""docs/architecture.md, "How stale a price can be": 2 s while a feed is silent, and 3 s where a load is slow too."""

WAIT_S = 10.0
"""For a boundary that has just passed, and for news to reach every process."""

SLACK_S = 1.0
"""For a test process that gets its turn late on a busy machine."""


SHEET = "convert_from(sheet, 'UTF8')::jsonb"
"""A sheet in the history is an array; its version is at 4, when it was computed at 5, until when it holds at 6."""


class Version(NamedTuple):
    """Of one price, in its history; instants are ms since 1970."""

    version: int
    everyone: int
    member: int
    cause: str
    computed_at: int
    valid_until: int | None


class Task(NamedTuple):
    """A recalculation, and when it ended, in s since 1970."""

    state: str
    ended_at: float | None


class Outcome:
    """What the stores say that became of everything."""

    def __init__(self, fleet: Fleet) -> None:
        self.processed = {event_id for (event_id,) in fleet.sql("SELECT event_id FROM processed_events")}
        self.letters: list[dict[str, str]] = [fields for _, fields in fleet.broker.xrange("events:dead")]
        self.history: dict[Row, list[Version]] = defaultdict(list)
        for product, location, *version in fleet.sql(
            "SELECT product_id, location, version, everyone_price, member_price, cause,"
            " round(extract(epoch FROM computed_at) * 1000)::int8,"
            f" ({SHEET} ->> 6)::int8 FROM price_history"
            " JOIN products USING (product_key) JOIN locations USING (location_key)"
            " ORDER BY product_id, location, version"
        ):
            self.history[Row(product, location)].append(Version(*version))
        self.tasks: dict[str, Task] = {
            task_id: Task(*task)
            for task_id, *task in fleet.sql("SELECT task_id, state, extract(epoch FROM ended_at)::float8 FROM tasks")
        }

    def letters_of(self, entry: Entry) -> list[dict[str, str]]:
        return [letter for letter in self.letters if letter["stream_id"] == entry.stream_id]


def first_entries(ledger: Ledger) -> Iterator[tuple[Entry, Event]]:
    """Well-formed entries in the order of the stream, each event once."""
    seen: set[str] = set()
    for entry in ledger.in_order():
        if entry.event_id in ledger.sent and entry.event_id not in seen:
            seen.add(entry.event_id)
            yield entry, ledger.sent[entry.event_id].event


def expected(ledger: Ledger, outcome: Outcome, products: Sequence[Product]) -> Oracle:
    """Of what was accepted, but for what was set aside."""
    oracle = Oracle(products)
    aside = {letter["stream_id"] for letter in outcome.letters}
    for entry, event in first_entries(ledger):
        if entry.stream_id not in aside or entry.event_id in outcome.processed:
            oracle.apply(event)
    return oracle


def events_are_applied_or_set_aside(ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    promise = "what was accepted is applied or set aside"
    in_stream = {entry.event_id for entry in ledger.entries.values()}
    for event_id, sent in ledger.sent.items():
        if sent.accepted and sent.way == "api" and event_id not in in_stream:
            yield Violation(promise, "answered with 202, and never in the stream", (event_id,))
    letters = Counter(letter["stream_id"] for letter in outcome.letters)
    for entry in ledger.in_order():
        applied, aside = entry.event_id in outcome.processed, letters[entry.stream_id]
        if not applied and not aside:
            yield Violation(promise, f"{entry.stream_id} is neither: {entry.raw[:200]}", (entry.event_id,))
        if aside > 1:
            yield Violation("set aside once", f"{entry.stream_id} has {aside} letters", (entry.event_id,))
        if applied and aside:
            yield Violation("applied or set aside, not both", f"{entry.stream_id} is both", (entry.event_id,))


def only_poison_is_set_aside(fleet: Fleet, ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    for letter in outcome.letters:
        if letter["event"] not in fleet.poison and not _is_poison(letter["event"]):
            yield Violation("no healthy event is set aside", str(letter), tuple(_ids(letter["event"])))
    for message, times in Counter(letter["event"] for letter in outcome.letters).items():
        if times > 1:
            yield Violation("set aside once", f"{times} letters: {message}", tuple(_ids(message)))
    for event_id in outcome.processed:
        if event_id.startswith((POISON, "unknown-")):
            yield Violation("poison is not applied", event_id, (event_id,))


def _is_poison(raw: str) -> bool:
    return any(event_id.startswith((POISON, "unknown-")) for event_id in _ids(raw))


def _ids(raw: str) -> Iterator[str]:
    try:
        yield str(json.loads(raw)["id"])
    except (ValueError, TypeError, KeyError):
        return


def nothing_is_applied_twice(ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    promise = "nothing is applied twice"
    published = Counter(entry.event_id for entry in ledger.entries.values())
    for event_id, sent in ledger.sent.items():
        if published[event_id] > 1 and sent.way != "stream":
            yield Violation(promise, f"published once, {published[event_id]} times in the stream", (event_id,))
    for row, versions in outcome.history.items():
        numbers = [version.version for version in versions]
        if numbers != list(range(1, len(numbers) + 1)):
            yield Violation(promise, f"versions are not 1, 2, 3, …: {numbers}", row=row)
        causes = Counter(event_id for version in versions for event_id in event_ids(version.cause))
        for event_id, times in causes.items():
            if times > 1 and outcome.tasks.get(event_id) is None:
                yield Violation(promise, f"the cause of {times} versions of one price", (event_id,), row)
            if event_id not in outcome.processed:
                yield Violation(promise, "a cause that was never processed", (event_id,), row)


def event_ids(cause: str) -> list[str]:
    """Of a version's cause: "event:a" or "events:a,b"."""
    what, _, ids = cause.partition(":")
    return ids.split(",") if what in ("event", "events") else []


def every_version_differs(fleet: Fleet, ledger: Ledger) -> Iterator[Violation]:
    """A version that says what the one before it said is an effect without a change; but for new revisions of rules,
    which make new versions."""
    said = f"({SHEET} - 5 - 4)"
    for product, location, version, cause in fleet.sql(
        f"SELECT product_id, location, version, cause FROM (SELECT *, {said} = lag({said}) OVER"
        " (PARTITION BY product_key, location_key ORDER BY version) AS same FROM price_history) AS h"
        " JOIN products USING (product_key) JOIN locations USING (location_key) WHERE same"
    ):
        ids = event_ids(cause)
        if not any(ledger.sent[id_].event["type"] in RULES for id_ in ids if id_ in ledger.sent):
            text = f"version {version} ({cause}) says what the one before says"
            yield Violation("one version for each change", text, tuple(ids), Row(product, location))


def prices_are_the_oracles(fleet: Fleet, oracle: Oracle, rows: Sequence[Row]) -> Iterator[Violation]:
    """Asked of every API, over several connections, so that every process is asked; again for a while where it is
    not, because a promotion may just have begun or ended."""
    for who, url in fleet.urls.items():
        for member in (False, True):
            for _ in range(4):
                wrong: dict[Row, tuple[int, dict[str, Any] | None]] = dict.fromkeys(rows, (0, None))
                with suppress(AssertionError):
                    eventually(lambda: not _ask_again(url, member, oracle, wrong), WAIT_S)  # noqa: B023
                for row, (want, quote) in wrong.items():
                    last = tuple(found.event_id for (of, _), found in oracle.inputs.items() if of == row)
                    text = f"{who} says {'to members ' if member else ''}{quote}, it is {want}"
                    yield Violation("prices are those of the events in order", text, last[-3:], row)


def _ask_again(
    url: str, member: bool, oracle: Oracle, wrong: dict[Row, tuple[int, dict[str, Any] | None]]
) -> dict[Row, tuple[int, dict[str, Any] | None]]:
    """Strike off what is right now."""
    for row, quote in _quotes(url, list(wrong), member):
        price = None if quote is None else round(quote["final_price"] * 10 ** DECIMALS[row.location])
        want = oracle.price(row, member=member, at=datetime.now(UTC))
        wrong[row] = want, quote
        if price == want:
            del wrong[row]
    return wrong


def _quotes(url: str, rows: Sequence[Row], member: bool) -> Iterator[tuple[Row, dict[str, Any] | None]]:
    client = Client(url)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        items = [{"product_id": r.product, "user_location": r.location, "is_prime_member": member} for r in part]
        _, body = client.post("/api/v1/prices/batch", {"items": items})
        yield from zip(part, (item["quote"] for item in json.loads(body)["items"]), strict=True)
    client.close()


COLUMNS = {
    "list_price": "lp.amount",
    "cost": "s.cost",
    "competitor_price": "s.competitor_price",
    "demand": "s.demand_bp",
    "stock": "s.stock",
}


def inputs_are_the_oracles(fleet: Fleet, oracle: Oracle) -> Iterator[Violation]:
    """Also those that no price shows just now."""
    stored = {
        Row(product, location): dict(zip(COLUMNS, values, strict=True))
        for product, location, *values in fleet.sql(
            f"SELECT product_id, location, {', '.join(COLUMNS.values())} FROM list_prices lp"
            " JOIN products USING (product_key) JOIN locations USING (location_key)"
            " LEFT JOIN signals s USING (product_key, location_key)"
        )
    }
    for (row, signal), (value, event_id) in oracle.inputs.items():
        if stored[row][signal] != value:
            text = f"{signal} is {stored[row][signal]}, the last event said {value}"
            yield Violation("a late event never overwrites a newer one", text, (event_id,), row)


def what_was_read_is_in_the_history(ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    """Under its version; but for what was computed for one answer because a promotion had just begun or ended."""
    versions = {(row, known.version): known for row, history in outcome.history.items() for known in history}
    for read in ledger.reads:
        known = versions.get((read.row, read.version))
        if not _knows_the_time(ledger, read):
            continue
        at_ms = (ledger.began_at + read.answered_at) * 1000
        over = known is not None and known.valid_until is not None and known.valid_until <= at_ms
        right = over or (known is not None and known.everyone == read.price)
        if not right:
            text = f"{read}, the history says {known}"
            yield Violation("every price read is a version of the history", text, row=read.row, at=read.asked_at)


def versions_never_go_backwards(ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    """On one connection, from a version whose events are acknowledged. What is committed, but not yet acknowledged,
    the database gives already where the cache is away, and the cache not yet when it is back. In an outage a stale
    price, which says so, may be older than what the database gave before."""
    acknowledged = {
        (row, version): at for row, versions in _acknowledged(ledger, outcome).items() for at, version in versions
    }
    last: dict[tuple[int, Row], Read] = {}
    for read in ledger.reads:
        before = last.get((read.connection, read.row))
        last[read.connection, read.row] = read
        if before is None or read.version >= before.version or not _knows_the_time(ledger, read):
            continue
        away = ledger.excused(read.asked_at, read.answered_at, *STORES, read.who.replace("api", "network"))
        if read.source == "stale" and away:
            continue
        if acknowledged.get((read.row, before.version), math.inf) < read.asked_at:
            text = f"{before}, then {read}"
            yield Violation("versions never go backwards on one connection", text, row=read.row, at=read.asked_at)


def nobody_reads_what_was_replaced(ledger: Ledger, outcome: Outcome) -> Iterator[Violation]:
    """Some time after its event was acknowledged. Stale prices say that they are."""
    due = _acknowledged(ledger, outcome)
    for read in ledger.reads:
        since = read.asked_at - BOUND_S - SLACK_S
        newest = max((version for at, version in due.get(read.row, ()) if at < since), default=0)
        if read.version < newest and read.source != "stale" and _knows_the_time(ledger, read):
            text = f"{read}, and version {newest} was acknowledged more than {BOUND_S:g} s before"
            yield Violation("nobody reads what was replaced", text, row=read.row, at=read.asked_at)


def _acknowledged(ledger: Ledger, outcome: Outcome) -> dict[Row, list[tuple[float, int]]]:
    """Each version whose events are all acknowledged, and since when. The event of a recalculation is acknowledged once
    the work is noted: it counts from when that has ended."""
    acknowledged_at: dict[str, float] = defaultdict(lambda: -math.inf)
    for entry in ledger.entries.values():
        at = ledger.acknowledged_at.get(entry.stream_id, math.inf)
        acknowledged_at[entry.event_id] = max(at, acknowledged_at[entry.event_id])
    for event_id, task in outcome.tasks.items():
        acknowledged_at[event_id] = math.inf if task.ended_at is None else task.ended_at - ledger.began_at
    found: dict[Row, list[tuple[float, int]]] = {}
    for row, versions in outcome.history.items():
        found[row] = []
        for version in versions:
            known = [acknowledged_at.get(event_id, math.inf) for event_id in event_ids(version.cause)]
            if known and max(known) < math.inf:
                found[row].append((max(known), version.version))
    return found


def readers_are_answered(ledger: Ledger) -> Iterator[Violation]:
    for failure in ledger.failures:
        if not _excused(ledger, failure):
            yield Violation("known prices are answered", str(failure), at=failure.asked_at)


def _excused(ledger: Ledger, failure: Failure) -> bool:
    """An API that was killed or stopped answers nothing. One that has to ask PostgreSQL because it has nothing at
    hand says 503 while PostgreSQL is away."""
    network, since, until = failure.who.replace("api", "network"), failure.asked_at, failure.ended_at
    if failure.what.startswith("503"):
        return ledger.excused(since, until, "postgres", network)
    return not failure.what[0].isdigit() and ledger.excused(since, until, failure.who)


def _knows_the_time(ledger: Ledger, read: Read) -> bool:
    """An API whose clock is wrong tells the price of another time."""
    clock = read.who.replace("api", "clock")
    return not ledger.excused(read.asked_at, read.answered_at, clock)


def tasks_succeeded(outcome: Outcome) -> Iterator[Violation]:
    for task_id, task in outcome.tasks.items():
        if task.state not in ("succeeded", "joined"):
            yield Violation("recalculations end", f"{task_id} is {task.state}", (task_id,))


def all_violations(
    fleet: Fleet,
    ledger: Ledger,
    products: Sequence[Product],
    rows: Sequence[Row],
) -> tuple[list[Violation], Outcome]:
    outcome = Outcome(fleet)
    oracle = expected(ledger, outcome, products)
    found = [
        *ledger.violations,
        *events_are_applied_or_set_aside(ledger, outcome),
        *only_poison_is_set_aside(fleet, ledger, outcome),
        *nothing_is_applied_twice(ledger, outcome),
        *every_version_differs(fleet, ledger),
        *prices_are_the_oracles(fleet, oracle, rows),
        *inputs_are_the_oracles(fleet, oracle),
        *what_was_read_is_in_the_history(ledger, outcome),
        *versions_never_go_backwards(ledger, outcome),
        *nobody_reads_what_was_replaced(ledger, outcome),
        *readers_are_answered(ledger),
        *tasks_succeeded(outcome),
    ]
    return found, outcome
