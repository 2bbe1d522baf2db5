"""Who may call, as callers and operators see it: scopes, limits, rotation, revocation, and where no key ever shows."""

import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.metrics import series
from tests.support.otlp import Collector
from tests.support.shop import IMPATIENT, Shop, problem, shop_of_its_own
from tests.support.stores import temporary_data
from tests.support.system import PRICING, System, environment
from tests.support.waiting import eventually

PRICE, KEYS = "/api/v1/price", "/api/v1/keys"
HONOURED_S = 2.0
READING_POSTS = {"/api/v1/price", "/api/v1/prices/batch", "/api/v1/prices/simulate"}
OPERATION = {"/healthz", "/readyz", "/metrics"}
UNKNOWN = f"pk_{'a' * 12}_{'b' * 43}"


@pytest.fixture(scope="module")
def guarded(collector: Collector) -> Iterator[Shop]:
    """Four workers, every request traced."""
    env = IMPATIENT | {
        "PRICING_WORKERS": "4",
        "PRICING_OTLP_ENDPOINT": collector.url,
        "PRICING_TRACE_SAMPLE_RATIO": "1",
        "PRICING_LOG_LEVEL": "debug",
    }
    with shop_of_its_own("keys", env=env) as shop:
        yield shop


@pytest.fixture(scope="module")
def closed() -> Iterator[Shop]:
    with shop_of_its_own("closed", env=IMPATIENT | {"PRICING_OPEN_READING": "false"}) as shop:
        yield shop


def make(shop: Shop, *scopes: str, **more: Any) -> str:
    response = shop.http.post(KEYS, json={"consumer_id": "test", "scopes": scopes, **more})
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    made = response.json()
    assert response.headers["location"] == f"{KEYS}/{made['key_id']}"
    key: str = made["key"]
    return key


def id_of(key: str) -> str:
    return key.split("_")[1]


def caller(shop: Shop, key: str | None, **headers: str) -> httpx.Client:
    shown = headers if key is None else {"X-API-Key": key, **headers}
    return httpx.Client(base_url=shop.system.url, timeout=30, headers=shown)


def ask(shop: Shop, product: str, key: str | None) -> httpx.Response:
    """Over a connection of its own, so that any of the workers may answer."""
    with caller(shop, key) as client:
        return client.post(PRICE, json={"product_id": product, "user_location": "NY"})


def operations(shop: Shop) -> list[tuple[str, str, dict[str, Any]]]:
    document = shop.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["ApiKey"]["in"] == "header"
    found = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(found) >= 35
    return found


def scope_of(operation: Mapping[str, Any]) -> str | None:
    """What the contract says that a caller needs."""
    needed = {scope for way in operation.get("security", ()) for scope in way.get("ApiKey", ())}
    assert len(needed) <= 1
    return needed.pop() if needed else None


def send(client: httpx.Client, method: str, path: str) -> httpx.Response:
    """A request without sense: whoever is let in is told that, and nothing is changed."""
    return client.request(method, re.sub(r"\{\w+\}", "no-such-thing", path), json={"no": "sense"})


def test_nothing_that_changes_anything_is_open_and_no_endpoint_answers_without_the_scope_that_it_says(
    guarded: Shop, subtests: pytest.Subtests
) -> None:
    """Of every operation of the contract, so that a new one cannot be forgotten."""
    keys: dict[str, str | None] = {scope: make(guarded, scope) for scope in ("read", "publish", "admin")}
    keys["nobody"] = None
    lets_in = {"read": {"read", "publish", "admin", "nobody"}, "publish": {"publish", "admin"}, "admin": {"admin"}}
    for method, path, operation in operations(guarded):
        with subtests.test(f"{method} {path}"):
            needed = scope_of(operation)
            if path in OPERATION:
                assert needed is None
                continue
            assert needed is not None
            if method != "GET" and path not in READING_POSTS:
                assert needed in ("publish", "admin")
            assert {"401", "403", "429"} <= set(operation["responses"])
            for scope, key in keys.items():
                with caller(guarded, key) as client:
                    response = send(client, method, path)
                if scope in lets_in[needed]:
                    assert response.status_code not in (401, 403), (scope, response.text)
                elif key is None:
                    problem(response, 401, "unauthenticated")
                    assert response.headers["www-authenticate"].startswith("ApiKey ")
                else:
                    assert f"scope {needed}" in problem(response, 403, "forbidden")["detail"]
            with caller(guarded, UNKNOWN) as client:
                problem(send(client, method, path), 401, "unauthenticated")


def test_where_reading_is_closed_it_needs_the_scope_too(closed: Shop) -> None:
    product = closed.product()
    reader, publisher = make(closed, "read"), make(closed, "publish")
    for _ in range(3):  # the first from the database, the next from memory
        problem(ask(closed, product, None), 401, "unauthenticated")
        problem(ask(closed, product, publisher), 403, "forbidden")
        assert ask(closed, product, reader).status_code == 200
    with caller(closed, publisher) as client:
        assert client.post("/api/v1/recalculate").status_code == 202
    with caller(closed, None) as client:
        for path in (*OPERATION, "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        problem(client.get("/api/v1/tasks"), 401, "unauthenticated")


@pytest.mark.parametrize("key", ["", "secret", UNKNOWN, UNKNOWN + "x", "pk_é", "x" * 5_000])
def test_a_wrong_key_is_refused_also_where_none_is_needed(guarded: Shop, key: str) -> None:
    product = guarded.product()
    assert ask(guarded, product, None).status_code == 200
    with httpx.Client(base_url=guarded.system.url, headers=[(b"x-api-key", key.encode())]) as client:
        refused = client.post(PRICE, json={"product_id": product, "user_location": "NY"})
    told = problem(refused, 401, "unauthenticated")
    assert not key or key not in json.dumps(told)


def test_a_key_that_was_just_made_works_at_once_whichever_process_is_asked(guarded: Shop) -> None:
    product = guarded.product()
    for _ in range(5):
        key = make(guarded, "publish")
        for _ in range(8):
            with caller(guarded, key) as client:
                event = {"type": "stock.changed", "subject": product, "location": "NY", "data": {"quantity": 5}}
                assert client.post("/api/v1/publish-market-event", json=event).status_code == 202


def test_a_revoked_key_is_refused_by_every_process_in_time(guarded: Shop) -> None:
    """Forty connections, so that every worker is asked."""
    product, key = guarded.product(), make(guarded, "read")
    clients = [caller(guarded, key) for _ in range(40)]
    question = {"product_id": product, "user_location": "NY"}

    def answers() -> Counter[int]:
        return Counter(client.post(PRICE, json=question).status_code for client in clients)

    assert answers() == {200: 40}
    revoked = guarded.http.post(f"{KEYS}/{id_of(key)}/revoke").json()
    assert revoked["revoked_at"] is not None
    eventually(lambda: answers() == {401: 40}, HONOURED_S)
    assert "was revoked" in problem(clients[0].post(PRICE, json=question), 401, "unauthenticated")["detail"]
    assert guarded.http.post(f"{KEYS}/{id_of(key)}/revoke").json() == revoked
    problem(guarded.http.post(f"{KEYS}/{id_of(key)}/rotate", json={}), 409, "conflict")
    for client in clients:
        client.close()


def test_a_rotated_key_and_the_new_one_both_work_until_the_overlap_is_over(guarded: Shop) -> None:
    product, old = guarded.product(), make(guarded, "read", rate_limit={"requests": 1000})
    response = guarded.http.post(f"{KEYS}/{id_of(old)}/rotate", json={"overlap_s": 3})
    assert response.status_code == 201
    made = response.json()
    assert (made["rotated_from"], made["consumer_id"], made["scopes"]) == (id_of(old), "test", ["read"])
    assert made["rate_limit"] == {"requests": 1000, "window_s": 60}
    assert [ask(guarded, product, key).status_code for key in (old, made["key"])] == [200, 200]
    eventually(lambda: ask(guarded, product, old).status_code == 401, 3 + HONOURED_S)
    assert "has expired" in problem(ask(guarded, product, old), 401, "unauthenticated")["detail"]
    assert ask(guarded, product, made["key"]).status_code == 200


def test_keys_and_consumers_are_listed_without_the_keys(guarded: Shop) -> None:
    made = [make(guarded, "read", consumer_id="listed", consumer_name="Listed & Sons") for _ in range(3)]
    first = guarded.http.get(KEYS, params={"consumer_id": "listed", "limit": 2}).json()
    rest = guarded.http.get(KEYS, params={"consumer_id": "listed", "after": first["next_after"]}).json()
    items = first["items"] + rest["items"]
    assert [item["key_id"] for item in items] == sorted(id_of(key) for key in made)
    assert rest["next_after"] is None
    assert not [key for key in made if key.split("_")[2] in json.dumps(items)]
    consumers = {c["consumer_id"]: c for c in guarded.http.get("/api/v1/consumers").json()["items"]}
    assert (consumers["listed"]["name"], consumers["listed"]["keys"]) == ("Listed & Sons", 3)
    assert guarded.http.get(f"{KEYS}/{id_of(made[0])}").json() == next(
        i for i in items if i["key_id"] == id_of(made[0])
    )
    problem(guarded.http.get(f"{KEYS}/{'x' * 12}"), 404, "not_found")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"scopes": []}, "body.scopes"),
        ({"scopes": ["everything"]}, "body.scopes.0"),
        ({"consumer_id": "a b"}, "body.consumer_id"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "body.expires_at"),
        ({"rate_limit": {"requests": 0}}, "body.rate_limit.requests"),
        ({"rate_limit": {"requests": 5, "window_s": 86_401}}, "body.rate_limit.window_s"),
        ({"key": UNKNOWN}, "body.key"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(guarded: Shop, changes: dict[str, Any], path: str) -> None:
    response = guarded.http.post(KEYS, json={"consumer_id": "test", "scopes": ["read"], **changes})
    assert [error["path"] for error in problem(response, 422, "invalid_input")["errors"]] == [path]


def test_a_key_with_a_limit_is_told_how_it_stands_and_refused_when_the_limit_is_reached(guarded: Shop) -> None:
    product, key = guarded.product(), make(guarded, "read", rate_limit={"requests": 20, "window_s": 3600})
    answers = [ask(guarded, product, key) for _ in range(30)]
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] <= 20
    assert statuses[200] >= 16, "a process may hold a token that it does not get to use"
    for answer in answers:
        assert answer.headers["ratelimit-policy"] == '"key";q=20;w=3600'
        assert re.fullmatch(r'"key";r=\d+;t=\d+', answer.headers["ratelimit"])
    left = [int(re.findall(r"r=(\d+)", answer.headers["ratelimit"])[0]) for answer in answers]
    assert left[0] == 19
    last = answers[-1]
    assert "20 requests in 3,600 s" in problem(last, 429, "rate_limited")["detail"]
    assert 0 < int(last.headers["retry-after"]) <= 180
    assert "ratelimit" not in ask(guarded, product, make(guarded, "read")).headers


def test_a_limit_holds_for_all_processes_together_and_is_passed_on_whole(guarded: Shop) -> None:
    product, key = guarded.product(), make(guarded, "read", rate_limit={"requests": 500, "window_s": 3600})
    answered: Counter[int] = Counter()
    lock = threading.Lock()

    def be_a_client() -> None:
        with caller(guarded, key) as client:
            for _ in range(100):
                status = client.post(PRICE, json={"product_id": product, "user_location": "NY"}).status_code
                with lock:
                    answered[status] += 1

    threads = [threading.Thread(target=be_a_client) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flowed_in = 500 / 3600 * (time.monotonic() - began) + 1
    assert set(answered) == {200, 429}
    assert 400 <= answered[200] <= 500 + flowed_in


def test_without_redis_limits_hold_within_each_process_and_that_is_counted(guarded: Shop) -> None:
    product, key = guarded.product(), make(guarded, "read", rate_limit={"requests": 80, "window_s": 3600})
    assert ask(guarded, product, key).status_code == 200
    pid = guarded.system.pids()["broker"]
    os.kill(pid, 19)
    try:
        with caller(guarded, key) as client:
            statuses = Counter(client.get("/api/v1/promotions/none").status_code for _ in range(60))
    finally:
        os.kill(pid, 18)
    assert set(statuses) == {404, 429}
    assert 15 <= statuses[404] <= 25, "a fourth of the limit, one of four processes"
    scraped = series(httpx.get(f"{guarded.system.url}/metrics", timeout=10).text)
    assert scraped["pricing_rate_limits_local_total", frozenset()] > 0


def test_what_is_refused_is_counted_by_the_reason(guarded: Shop) -> None:
    def refused() -> dict[str, float]:
        scraped = series(httpx.get(f"{guarded.system.url}/metrics", timeout=10).text)
        return {
            dict(labels)["reason"]: value
            for (name, labels), value in scraped.items()
            if name == "pricing_requests_refused_total"
        }

    key = make(guarded, "read", rate_limit={"requests": 1, "window_s": 3600})
    before = refused()
    with caller(guarded, key) as client, caller(guarded, None) as nobody:
        client.post("/api/v1/recalculate")
        assert client.get("/api/v1/promotions").status_code == 200
        client.get("/api/v1/promotions")
        nobody.post("/api/v1/recalculate")
    expected = {reason: before.get(reason, 0) + 1 for reason in ("unauthenticated", "forbidden", "rate_limited")}
    eventually(lambda: refused() == expected)


def cli(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PRICING, "keys", *arguments],
        env=environment({"PRICING_DATA": str(system.data)}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_operators_manage_keys_on_the_command_line(guarded: Shop) -> None:
    product = guarded.product()
    made = cli(guarded.system, "create", "by-hand", "--scope", "publish", "--scope", "read", "--limit", "50/min")
    assert made.returncode == 0, made.stderr
    key = re.findall(r"pk_\w+", made.stdout)[0]
    assert ask(guarded, product, key).headers["ratelimit-policy"] == '"key";q=50;w=60'
    said = [json.loads(line) for line in made.stderr.splitlines()]
    assert [(line["event"], line["key_id"]) for line in said] == [("API key created", id_of(key))]
    assert "by command" in said[0]["by"]
    listed = json.loads(cli(guarded.system, "list", "--consumer", "by-hand", "--json").stdout)["items"]
    assert [item["key_id"] for item in listed] == [id_of(key)]
    rotated = json.loads(cli(guarded.system, "rotate", id_of(key), "--overlap", "0s", "--json").stdout)
    assert rotated["rotated_from"] == id_of(key)
    eventually(lambda: ask(guarded, product, key).status_code == 401, HONOURED_S)
    assert ask(guarded, product, rotated["key"]).status_code == 200
    assert cli(guarded.system, "revoke", rotated["key_id"]).returncode == 0
    eventually(lambda: ask(guarded, product, rotated["key"]).status_code == 401, HONOURED_S)
    assert cli(guarded.system, "list", "--consumer", "by-hand", "--all").stdout.count("by-hand") == 2
    for wrong in (
        ["create", "x", "--scope", "all"],
        ["revoke", "x" * 12],
        ["create", "x", "--scope", "read", "--limit", "many"],
    ):
        done = cli(guarded.system, *wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("pricing: ")
        assert "Traceback" not in done.stderr


def test_the_first_start_prints_an_admin_key_once_and_keeps_it_for_its_owner() -> None:
    with temporary_data("pricing-first-") as data:
        first = System(data, "--catalog", "none").wait_until_ready()
        try:
            assert first.said().count(first.key) == 1
            for name in ("admin-key", "key-secret"):
                assert (data / name).stat().st_mode & 0o777 == 0o600
            assert cli(first, "first").stdout == "There is an admin key already.\n"
            kept = first.key
        finally:
            assert first.stop() == 0
        again = System(data, "--catalog", "none").wait_until_ready()
        try:
            assert "pk_" not in again.said()
            assert again.key == kept
            assert httpx.get(f"{again.url}{KEYS}", headers=again.with_key, timeout=30).status_code == 200
        finally:
            again.stop()


def written(system: System) -> Iterator[tuple[Path, bytes]]:
    """What processes have written: logs, PostgreSQL's tables and log of changes, every command that changed Redis."""
    for path in system.data.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


def test_no_key_shows_in_anything_that_the_system_writes(guarded: Shop, collector: Collector) -> None:
    """Also where its owner puts it where none belongs."""
    product = guarded.product()
    key = make(guarded, "read", "publish", rate_limit={"requests": 1000})
    secret = key.split("_")[2].encode()
    said: list[str] = []
    with caller(guarded, key) as client, caller(guarded, None) as nobody:
        for _ in range(3):
            said.append(client.post(PRICE, json={"product_id": product, "user_location": "NY"}).text)
        said.append(client.post("/api/v1/recalculate").text)
        said.append(client.post(KEYS, json={"consumer_id": key}).text)
        said.append(client.post(PRICE, content=b"{" + key.encode()).text)
        for path in (
            f"/{key}",
            f"{KEYS}/{key}",
            f"/api/v1/prices/{product}?location=NY&api_key={key}",
            f"/{key}?x={key}",
        ):
            said.append(nobody.get(path).text)
            said.append(client.get(path).text)
        for header in ("X-Api-Token", "Api-Key", "Cookie", "X-User-ID", "User-Agent", "Referer", "Idempotency-Key"):
            said.append(nobody.get("/api/v1/promotions", headers={header: key}).text)
        said.append(nobody.get("/api/v1/promotions", headers={"Authorization": f"Bearer {key}"}).text)
        said.append(nobody.post("/api/v1/recalculate", headers={"Authorization": f"Bearer {key}"}).text)
        said.append(client.post(f"{KEYS}/{key}/revoke").text)
        said.append(client.get("/metrics").text)
    eventually(
        lambda: any(
            span.attributes.get("url.path") == f"{KEYS}/pk_{id_of(key)}_[redacted]" for span in collector.spans()
        )
    )
    guarded.settle()
    guarded.sql("CHECKPOINT")
    assert not [text for text in said if secret.decode() in text]
    assert not [span for span in collector.spans() if secret.decode() in repr(span)]
    files = dict(written(guarded.system))
    for name in ("api.log", "appendonly"):
        assert any(id_of(key).encode() in content for path, content in files.items() if name in path.name), name
    assert [path for path, content in files.items() if secret in content] == []
