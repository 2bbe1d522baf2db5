"""Dead letters as an operator has them: over HTTP and with `pricing dlq`; looked at, mended, replayed, discarded."""

import json
import os
import pty
import re
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.support.shop import Shop, paths, prices, problem
from tests.support.system import PRICING, environment
from tests.support.waiting import eventually

LETTERS = "/api/v1/dead-letters"


def unknown() -> str:
    return f"U-{uuid4().hex}"


def dead(shop: Shop, product: str, amount: float = 3, **event: Any) -> dict[str, Any]:
    """An event about a product that there is not, once it is a dead letter; the letter."""
    event_id = shop.happen("list_price.changed", product, "NY", data={"amount": amount}, **event)
    status = shop.http.get(f"/api/v1/events/{event_id}").json()
    assert status["status"] == "dead"
    letter: dict[str, Any] = status["dead_letter"]
    return letter


def mend(shop: Shop, product: str) -> None:
    """Now there is such a product."""
    shop.sql("UPDATE products SET product_id = %s WHERE product_id = %s", product, shop.product())


def put(shop: Shop, count: int, reason: str, **event: Any) -> list[str]:
    """Dead letters, many at once, whose cause is mended already; their ids."""
    product = shop.product()
    with shop.broker.pipeline() as pipeline:
        for _ in range(count):
            content = {"id": str(uuid4()), "type": "cost.changed", "subject": product, "location": "NY"} | event
            content.setdefault("data", {"amount": 1})
            letter = {"event": json.dumps(content), "stream_id": "1-1", "reason": reason, "attempts": 1}
            pipeline.xadd("events:dead", letter)
        letter_ids: list[str] = pipeline.execute()
    return letter_ids


def pricing(shop: Shop, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PRICING, "dlq", *arguments],
        env=environment({"PRICING_DATA": str(shop.system.data)}),
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(shop: Shop, *arguments: str, code: int = 0) -> Any:
    done = pricing(shop, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def in_list(shop: Shop, **query: Any) -> list[str]:
    response = shop.http.get(LETTERS, params={"limit": 1000, **query})
    assert response.status_code == 200, response.text
    return [letter["letter_id"] for letter in response.json()["items"]]


def test_an_event_tells_what_became_of_it(shop: Shop) -> None:
    product = shop.product()
    assert problem(shop.http.get(f"/api/v1/events/{uuid4()}"), 404, "not_found")
    with shop.another_connection() as connection:
        connection.execute("SELECT FROM list_prices JOIN products USING (product_key) FOR UPDATE")
        event_id = shop.publish("list_price.changed", product, "NY", data={"amount": 3})
        waiting = shop.http.get(f"/api/v1/events/{event_id}").json()
    assert (waiting["event_id"], waiting["status"], waiting["applied_at"]) == (event_id, "accepted", None)
    accepted_at = datetime.fromisoformat(waiting["accepted_at"])
    assert abs(datetime.now(UTC) - accepted_at) < timedelta(minutes=2)
    shop.settle()
    applied = shop.http.get(f"/api/v1/events/{event_id}").json()
    assert (applied["status"], applied["dead_letter"], applied["task_id"]) == ("applied", None, None)
    assert datetime.fromisoformat(applied["applied_at"]) >= accepted_at
    task_id = shop.http.post("/api/v1/recalculate").json()["task_id"]
    shop.settle()
    assert shop.http.get(f"/api/v1/events/{task_id}").json()["task_id"] == task_id
    shop.task(task_id)


def test_a_dead_event_is_replayed_when_its_cause_is_mended(shop: Shop) -> None:
    product = unknown()
    letter = dead(shop, product)
    letter_id, event_id = letter["letter_id"], letter["event_id"]
    assert product in letter["reason"]
    assert (letter["type"], letter["subject"], letter["location"]) == ("list_price.changed", product, "NY")
    whole = shop.http.get(f"{LETTERS}/{letter_id}").json()
    assert whole["event"]["data"] == {"amount": 3}
    assert whole["event"]["traceparent"].split("-")[1] == whole["trace_id"] == letter["trace_id"]
    assert whole["attempts"] == 1
    assert whole["first_error"] == whole["last_error"] == whole["reason"]

    again = shop.http.post(f"{LETTERS}/{letter_id}/replay")  # nothing was mended: it dies again
    assert again.status_code == 202
    assert again.json()["event_id"] == event_id
    shop.settle()
    (letter_id,) = [letter for letter in in_list(shop) if event_id in shop.http.get(f"{LETTERS}/{letter}").text]
    assert letter_id != letter["letter_id"]

    mend(shop, product)
    replayed = shop.http.post(f"{LETTERS}/{letter_id}/replay").json()
    assert (replayed["letter_id"], replayed["event_id"]) == (letter_id, event_id)
    shop.settle()
    assert shop.costs("3.00", product)
    assert shop.causes(product) == [f"event:{event_id}"]
    assert shop.http.get(f"/api/v1/events/{event_id}").json()["status"] == "applied"
    for method, path in (("POST", f"{LETTERS}/{letter_id}/replay"), ("GET", f"{LETTERS}/{letter_id}")):
        problem(shop.http.request(method, path), 404, "not_found")


def test_a_replayed_event_overwrites_nothing_that_came_after_it(shop: Shop) -> None:
    product = unknown()
    first, second = dead(shop, product, 3), dead(shop, product, 4)
    mend(shop, product)
    shop.happen("list_price.changed", product, "NY", data={"amount": 5})
    for letter in (second, first):
        assert shop.http.post(f"{LETTERS}/{letter['letter_id']}/replay").status_code == 202
        shop.settle()
        assert shop.http.get(f"/api/v1/events/{letter['event_id']}").json()["status"] == "applied"
    assert shop.costs("5.00", product)
    assert prices(shop.history(product)) == ["5.00"]


def test_a_replayed_event_that_was_applied_after_all_has_no_second_effect(shop: Shop) -> None:
    product = shop.product()
    event_id = shop.happen("list_price.changed", product, "NY", data={"amount": 3})
    shop.happen("list_price.changed", product, "NY", data={"amount": 4})
    event = {"id": event_id, "type": "list_price.changed", "subject": product, "location": "NY", "data": {"amount": 3}}
    (letter_id,) = put(shop, 1, "by mistake", **event)
    assert shop.http.post(f"{LETTERS}/{letter_id}/replay").status_code == 202
    shop.settle()
    assert shop.costs("4.00", product)
    assert prices(shop.history(product)) == ["4.00", "3.00"]


def test_a_message_that_is_no_event_can_be_looked_at_and_discarded_but_not_replayed(shop: Shop) -> None:
    unique = uuid4().hex
    shop.broker.publish("market_events", f"nonsense {unique}")
    (letter_id,) = eventually(
        lambda: [letter for letter in in_list(shop) if unique in shop.http.get(f"{LETTERS}/{letter}").text]
    )
    letter = shop.http.get(f"{LETTERS}/{letter_id}").json()
    assert (letter["message"], letter["event"], letter["replayable"]) == (f"nonsense {unique}", None, False)
    assert "JSON" in problem(shop.http.post(f"{LETTERS}/{letter_id}/replay"), 409, "not_replayable")["detail"]
    assert "cannot be replayed" in pricing(shop, "replay", letter_id).stderr
    assert shop.http.delete(f"{LETTERS}/{letter_id}").status_code == 204
    problem(shop.http.delete(f"{LETTERS}/{letter_id}"), 404, "not_found")


def test_the_list_is_filtered_and_goes_on_page_by_page(shop: Shop) -> None:
    reason = f"reason {uuid4()}"
    letter_ids = put(shop, 5, reason)
    other = put(shop, 1, reason, type="stock.changed", data={"quantity": 1})
    assert in_list(shop, reason=reason.upper()) == (letter_ids + other)[::-1]
    assert in_list(shop, reason=reason, type="stock.changed") == other
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    assert in_list(shop, reason=reason, since=(now - hour).isoformat()) == in_list(shop, reason=reason)
    assert in_list(shop, reason=reason, since=(now + hour).isoformat()) == []
    assert in_list(shop, reason=reason, until=(now - hour).isoformat()) == []
    first = shop.http.get(LETTERS, params={"reason": reason, "limit": 4}).json()
    assert first["total"] == shop.broker.xlen("events:dead")
    rest = shop.http.get(LETTERS, params={"reason": reason, "limit": 4, "before": first["next_before"]}).json()
    assert [len(first["items"]), len(rest["items"]), rest["next_before"]] == [4, 2, None]
    assert shop.http.post(f"{LETTERS}/discard", json={"letter_ids": letter_ids + other}).json() == {
        "discarded": letter_ids + other,
        "gone": [],
    }


@pytest.mark.parametrize("query", ["before=x", "limit=0", "limit=1001", "since=yesterday", "type=gossip", "before=1"])
def test_a_list_that_cannot_be_is_refused(shop: Shop, query: str) -> None:
    assert paths(shop.http.get(f"{LETTERS}?{query}")) == [f"query.{query.partition('=')[0]}"]


def test_ids_that_cannot_be_are_refused(shop: Shop) -> None:
    for path in (f"{LETTERS}/x", f"{LETTERS}/99999999999999999999-0"):
        problem(shop.http.get(path), 422, "invalid_input")
    problem(shop.http.get(f"{LETTERS}/9999999999999999999-0"), 404, "not_found")
    for letter_ids in ([], ["x"], ["1-1"] * 1001):
        problem(shop.http.post(f"{LETTERS}/replay", json={"letter_ids": letter_ids}), 422, "invalid_input")


def test_many_are_replayed_as_fast_as_is_allowed_and_the_rest_is_told(shop: Shop) -> None:
    letter_ids = put(shop, 120, "many")
    malformed: str = shop.broker.xadd("events:dead", {"event": "nonsense", "reason": "not JSON"})
    left = ["1-1", malformed, *letter_ids]
    sizes = []
    outcomes: dict[str, int] = {"replayed": 0, "refused": 0, "gone": 0}
    while left:
        response = shop.http.post(f"{LETTERS}/replay", json={"letter_ids": left})
        if response.status_code == 200:
            content = response.json()
            for name in outcomes:
                outcomes[name] += len(content[name])
            left = content["not_yet"]
            sizes.append(len(content["replayed"]))
        else:
            problem(response, 429, "rate_limited")
        assert response.headers.get("retry-after") == ("1" if left else None)
    assert outcomes == {"replayed": 120, "refused": 1, "gone": 1}
    assert 50 <= sizes[0] < 120, "as many as are allowed in a second"
    assert not set(letter_ids) & set(in_list(shop))
    shop.settle()


def test_too_many_replays_are_answered_with_429(shop: Shop) -> None:
    """The bucket is empty, and was looked at in the future: a token comes in 20 ms at the earliest."""
    (letter_id,) = put(shop, 1, "one too many")
    for path, body in ((f"{LETTERS}/{letter_id}/replay", None), (f"{LETTERS}/replay", {"letter_ids": [letter_id]})):
        shop.broker.hset("events:dead:replays", mapping={"tokens": 0, "at": 10**15})
        response = shop.http.post(path, json=body)
        assert "second" in problem(response, 429, "rate_limited")["detail"]
        assert response.headers["retry-after"] == "1"
    assert shop.http.delete(f"{LETTERS}/{letter_id}").status_code == 204


def test_the_command_shows_what_is_there(shop: Shop) -> None:
    reason = f"why [red]not[/red] \x1b[31m {uuid4()}"
    letter_ids = put(shop, 3, reason)
    listed = pricing(shop, "list", "--reason", reason)
    assert listed.returncode == 0
    assert [letter_id in listed.stdout for letter_id in letter_ids] == [True] * 3
    assert "\x1b" not in listed.stdout
    assert "[red]not[/red]" in listed.stdout
    page = told(shop, "list", "--reason", reason, "--limit", "2")
    rest = told(shop, "list", "--reason", reason, "--before", page["next_before"])
    assert [letter["letter_id"] for letter in page["items"] + rest["items"]] == letter_ids[::-1]
    assert told(shop, "list", "--reason", reason, "--since", "1h", "--type", "cost.changed")["items"]
    assert told(shop, "list", "--reason", reason, "--until", "1h")["items"] == []
    shown = pricing(shop, "show", letter_ids[0])
    assert "[red]not[/red]" in shown.stdout
    assert '"amount": 1' in shown.stdout
    assert told(shop, "show", letter_ids[0]) == shop.http.get(f"{LETTERS}/{letter_ids[0]}").json()
    told(shop, "discard", *letter_ids)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "1-1"], "there is no dead letter"),
        (["show", "letter"], "those look like"),
        (["replay"], "or say --all"),
        (["discard"], "or say --all"),
        (["replay", "1-1", "--all"], "or say --all"),
        (["discard", "1-1", "--reason", "x"], "Filters go with --all"),
        (["list", "--since", "soon"], "give a duration"),
        (["list", "--type", "gossip"], "cost.changed"),
        (["replay", "1-1"], "is not there"),
    ],
)
def test_the_command_says_what_is_wrong(shop: Shop, arguments: list[str], says: str) -> None:
    done = pricing(shop, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_replays_those_it_is_told_to(shop: Shop) -> None:
    product = unknown()
    letter = dead(shop, product)
    mend(shop, product)
    done = pricing(shop, "replay", letter["letter_id"])
    assert (done.returncode, done.stdout) == (0, "1 replayed.\n"), done.stderr
    shop.settle()
    assert shop.costs("3.00", product)


def test_the_command_asks_before_it_discards_all(shop: Shop) -> None:
    reason = f"reason {uuid4()}"
    letter_ids = put(shop, 2, reason)
    (other,) = put(shop, 1, f"other {uuid4()}")
    for answer in ("n\n", "", "\n"):
        refused = pricing(shop, "discard", "--all", "--reason", reason, answer=answer)
        assert refused.returncode == 1
        assert "Discard 2 dead letters" in refused.stdout + refused.stderr
        assert "Nothing was discarded" in refused.stderr
    assert set(letter_ids) <= set(in_list(shop))
    done = pricing(shop, "discard", "--all", "--reason", reason, answer="y\n")
    assert done.returncode == 0
    assert "2 discarded." in done.stdout
    assert not set(letter_ids) & set(in_list(shop))
    assert told(shop, "discard", other, code=0) == {"discarded": [other], "gone": []}
    assert told(shop, "discard", other, code=1) == {"discarded": [], "gone": [other]}


def test_command_and_api_replay_each_letter_once_and_no_faster_together(shop: Shop) -> None:
    """170 letters at 50 a second: the first fifty at once, the rest in 2.4 s, whoever does it."""
    reason = f"reason {uuid4()}"
    letter_ids = put(shop, 170, reason)
    by_api: list[str] = []

    def ask() -> None:
        for letter_id in reversed(letter_ids):
            with shop.fresh_client() as http:
                if http.post(f"{LETTERS}/{letter_id}/replay").status_code == 202:
                    by_api.append(letter_id)

    added = shop.broker.xinfo_stream("events")["entries-added"]
    asking = threading.Thread(target=ask)
    began = datetime.now(UTC)
    asking.start()
    content = told(shop, "replay", "--all", "--reason", reason)
    took = datetime.now(UTC) - began
    asking.join()
    by_command = [replayed["letter_id"] for replayed in content["replayed"]]
    assert sorted(by_command + by_api) == sorted(letter_ids)
    assert by_command
    assert shop.broker.xinfo_stream("events")["entries-added"] - added == 170
    assert took > timedelta(seconds=2.3)
    shop.settle()


def test_a_long_replay_shows_how_far_it_is(shop: Shop) -> None:
    reason = f"reason {uuid4()}"
    put(shop, 200, reason)
    terminal, its_end = pty.openpty()
    try:
        process = subprocess.Popen(
            [PRICING, "dlq", "replay", "--all", "--reason", reason],
            env=environment({"PRICING_DATA": str(shop.system.data), "TERM": "xterm"}),
            stdout=subprocess.PIPE,
            stderr=its_end,
        )
        os.close(its_end)
        seen = b""
        with suppress(OSError):  # it has ended
            while True:
                seen += os.read(terminal, 4096)
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(terminal)
    assert re.search(rb"replaying.*\d+%", seen)
    assert out == b"200 replayed.\n"
    shop.settle()
