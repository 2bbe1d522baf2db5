"""Asking for prices: one, many, as they were, as they would be; and asking badly."""

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.shop import Shop, exactly, paths, prices, problem

LONE_SURROGATE = "\ud800"
ODD_STRINGS = [
    "",
    " ",
    "\x00",
    "P-1\x00",
    "\r\n",
    LONE_SURROGATE,
    "\u202eP-1",
    "Ⅷ",
    "🛒" * 300,
    "x" * 100_000,
    "'; DROP TABLE products; --",
    "../../etc/passwd",
    "%00",
    "{{7*7}}",
    "-1",
]
ODD_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "1.5", "1" * 400, "1" * 5000, "1e-400", "true", "[]"]


def rows(shop: Shop) -> dict[str, int]:
    """How much there is of events and prices in every table and in Redis; records of requests come all the time."""
    tables = [name for (name,) in shop.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    concerned = [name for name in tables if "record" not in name]
    return {name: shop.sql(f"SELECT count(*) FROM {name}")[0][0] for name in concerned} | {
        "stream": shop.broker.xlen("events"),
        "cached": len(list(shop.cache.scan_iter("price:*"))),
    }


def cached(shop: Shop, product: str) -> list[str]:
    return list(shop.cache.scan_iter(f"price:*{product}"))


def send(shop: Shop, path: str, body: str | bytes, **headers: str) -> httpx.Response:
    return shop.http.post(path, content=body, headers={"Content-Type": "application/json", **headers})


def test_an_answer_has_exactly_these_fields(shop: Shop) -> None:
    product = shop.product()
    shop.happen("list_price.changed", product, "NY", data={"amount": 20.00})
    shop.happen(
        "promotion.changed",
        product,
        data={
            "promotion": {
                "promotion_id": f"members-{product}",
                "name": "For members",
                "product_id": product,
                "kind": "percent",
                "value": 25,
                "segment": "member",
            }
        },
    )
    assert shop.costs("15.00", product, is_prime_member=True)
    answer = shop.quote(product, is_prime_member=True, quantity=3)
    computed_at = datetime.fromisoformat(answer.pop("computed_at"))
    assert abs((datetime.now(UTC) - computed_at).total_seconds()) < 60
    assert answer == {
        "product_id": product,
        "location": "NY",
        "currency": "USD",
        "segment": "member",
        "quantity": 3,
        "list_price": Decimal("20.00"),
        "base_price": Decimal("20.00"),
        "discount_rate": Decimal("0.2500"),
        "final_price": Decimal("15.00"),
        "total": Decimal("45.00"),
        "rounding_scope": "unit",
        "adjustments": [
            {
                "step": "promotion",
                "rule": f"members-{product}",
                "name": "For members",
                "amount": Decimal("-5.00"),
                "price": Decimal("15.00"),
            }
        ],
        "rejected": [],
        "source": "cache",
        "version": 2,
        "valid_until": None,
    }
    everyone = shop.quote(product)
    assert everyone["adjustments"] == []
    assert everyone["rejected"] == [
        {"rule": f"members-{product}", "name": "For members", "reason": "other_segment"},
    ]


@pytest.mark.parametrize(
    ("location", "currency", "written", "total"),
    [("NY", "USD", "12.50", "37.50"), ("TYO", "JPY", "1250", "3750"), ("KWI", "KWD", "1.250", "3.750")],
)
def test_amounts_are_written_with_exactly_the_decimals_of_the_currency(
    shop: Shop, location: str, currency: str, written: str, total: str
) -> None:
    product = shop.product({location: 1250})
    text = shop.ask(product, location, quantity=3).text
    assert f'"currency":"{currency}"' in text
    for field, value in {"list_price": written, "base_price": written, "final_price": written, "total": total}.items():
        assert f'"{field}":{value},' in text
    assert '"discount_rate":0.0000,' in text


def test_the_first_answer_comes_from_the_database_and_the_next_from_the_cache(shop: Shop) -> None:
    product = shop.product()
    first, second = shop.quote(product), shop.quote(product)
    assert (first.pop("source"), second.pop("source")) == ("database", "cache")
    assert first == second


def test_get_answers_as_post_and_with_an_etag(shop: Shop) -> None:
    product = shop.product()
    posted = shop.quote(product, is_prime_member=True, quantity=2)
    url = f"/api/v1/prices/{product}"
    context: dict[str, Any] = {"location": "NY", "is_prime_member": "true", "quantity": 2}
    response = shop.http.get(url, params=context)
    assert response.status_code == 200
    assert exactly(response) | {"source": ""} == posted | {"source": ""}
    assert response.headers["cache-control"] == "no-cache"
    etag = response.headers["etag"]
    for matching in (etag, f'"another", {etag}', "*"):
        again = shop.http.get(url, params=context, headers={"If-None-Match": matching})
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], again.headers["cache-control"]) == (etag, "no-cache")
    for other in (context | {"quantity": 3}, context | {"is_prime_member": "false"}, context | {"location": "LA"}):
        assert shop.http.get(url, params=other, headers={"If-None-Match": etag}).status_code == 200
    shop.happen("list_price.changed", product, "NY", data={"amount": 9})
    assert shop.costs("9.00", product)
    changed = shop.http.get(url, params=context, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert exactly(changed)["final_price"] == Decimal("9.00")


def test_segments_places_and_quantities_never_get_each_others_price(shop: Shop) -> None:
    product = shop.product({"NY": 1000, "LA": 2000, "TYO": 3000})
    shop.happen(
        "promotion.changed",
        product,
        data={
            "promotion": {
                "promotion_id": f"m-{product}",
                "name": "m",
                "product_id": product,
                "kind": "percent",
                "value": 10,
                "segment": "member",
            }
        },
    )
    assert shop.costs("9.00", product, is_prime_member=True)
    expected = {
        ("NY", False): "10.00", ("NY", True): "9.00",
        ("LA", False): "20.00", ("LA", True): "18.00",
        ("TYO", False): "3000", ("TYO", True): "2700",
    }  # fmt: skip
    contexts = list(itertools.product(("NY", "LA", "TYO"), (False, True), (1, 7)))
    for location, member, quantity in contexts * 3:
        answer = shop.quote(product, location, is_prime_member=member, quantity=quantity)
        assert str(answer["final_price"]) == expected[location, member]
        assert answer["total"] == answer["final_price"] * quantity
        assert (answer["location"], answer["segment"]) == (location, "member" if member else "everyone")


def test_ids_with_colons_are_not_mixed_up(shop: Shop) -> None:
    """Location A:B with product C is not location A with product B:C."""
    for location in ("A", "A:B"):
        shop.sql(
            "INSERT INTO locations (location, name, currency, currency_number, time_zone)"
            " VALUES (%s, %s, 'USD', 840, 'UTC')",
            location, location,
        )  # fmt: skip
    for product, location, amount in (("B:C", "A", 100), ("C", "A:B", 200)):
        shop.sql("INSERT INTO products (product_id, name) VALUES (%s, %s)", product, product)
        shop.sql(
            "INSERT INTO list_prices SELECT product_key, location_key, %s, 0 FROM products, locations"
            " WHERE product_id = %s AND location = %s",
            amount, product, location,
        )  # fmt: skip
    for _ in range(2):
        assert shop.costs("1.00", "B:C", "A")
        assert shop.costs("2.00", "C", "A:B")


def test_a_batch_answers_every_item_in_order(shop: Shop) -> None:
    one, two = shop.product({"NY": 100}), shop.product({"LA": 200})
    items = [
        {"product_id": one, "user_location": "NY"},
        {"product_id": "nothing", "user_location": "NY"},
        {"product_id": two, "user_location": "LA", "quantity": 5, "is_prime_member": True},
        {"product_id": two, "user_location": "NY"},
        {"product_id": one, "user_location": "NY", "quantity": 2},
        {"product_id": one, "user_location": "nowhere"},
    ]
    response = shop.http.post("/api/v1/prices/batch", json={"items": items})
    assert response.status_code == 200
    answers = exactly(response)["items"]
    assert [answer["status"] for answer in answers] == [200, 404, 200, 404, 200, 404]
    totals = [str(answer["quote"]["total"]) for answer in answers if answer["quote"]]
    assert totals == ["1.00", "10.00", "2.00"]
    problems = [answer["problem"] for answer in answers]
    assert [p and p["detail"] for p in problems] == [
        None,
        "there is no product 'nothing'",
        None,
        f"product '{two}' has no price at 'NY'",
        None,
        "there is no location 'nowhere'",
    ]
    assert problems[0] is None
    assert problems[1]["code"] == "not_found"


def test_a_batch_takes_a_thousand_items_and_no_more(shop: Shop) -> None:
    products = [shop.product({"NY": 100 + n}) for n in range(20)]
    items = [{"product_id": product, "user_location": "NY"} for product in products * 50]
    response = shop.http.post("/api/v1/prices/batch", json={"items": items})
    found = [answer["quote"]["final_price"] for answer in exactly(response)["items"]]
    assert found == [Decimal(100 + n).scaleb(-2) for n in range(20)] * 50
    assert paths(shop.http.post("/api/v1/prices/batch", json={"items": [*items, items[0]]})) == ["body.items"]
    assert paths(shop.http.post("/api/v1/prices/batch", json={"items": []})) == ["body.items"]
    items[3] = {"product_id": products[0], "user_location": "NY", "quantity": 0}
    assert paths(shop.http.post("/api/v1/prices/batch", json={"items": items})) == ["body.items.3.quantity"]


def test_history_comes_in_pages_newest_first(shop: Shop) -> None:
    product = shop.product()
    events = [shop.happen("list_price.changed", product, "NY", data={"amount": amount}) for amount in (10, 11, 12)]
    url, ny = f"/api/v1/prices/{product}/history", {"location": "NY"}
    first = exactly(shop.http.get(url, params=ny | {"limit": 2}))
    assert (first["product_id"], first["location"], first["currency"]) == (product, "NY", "USD")
    assert [version["version"] for version in first["versions"]] == [3, 2]
    assert prices(first["versions"]) == ["12.00", "11.00"]
    assert [version["cause"] for version in first["versions"]] == [f"event:{events[2]}", f"event:{events[1]}"]
    assert first["versions"][0]["until"] is None
    assert first["versions"][1]["until"] == first["versions"][0]["computed_at"]
    assert first["next_before"] == 2
    second = exactly(shop.http.get(url, params=ny | {"limit": 2, "before_version": first["next_before"]}))
    assert prices(second["versions"]) == ["10.00"]
    assert second["versions"][0]["until"] == first["versions"][1]["computed_at"]
    assert second["next_before"] is None
    problem(shop.http.get(url, params={"location": "nowhere"}), 404, "not_found")


def test_the_lowest_price_is_that_of_the_thirty_days_before_the_day_where_the_shop_is(shop: Shop) -> None:
    product = shop.product()
    changes = [
        (20, "2026-01-01T00:00:00Z"),
        (9, "2026-01-15T00:00:00Z"),
        (15, "2026-01-30T05:00:00Z"),  # midnight in New York
        (12, "2026-02-10T00:00:00Z"),
        (7, "2026-03-01T05:00:00Z"),  # midnight again
    ]
    for version, (amount, computed_at) in enumerate(changes, start=1):
        shop.happen("list_price.changed", product, "NY", data={"amount": amount})
        shop.sql(
            "UPDATE price_history SET computed_at = %s WHERE version = %s"
            " AND product_key = (SELECT product_key FROM products WHERE product_id = %s)",
            computed_at, version, product,
        )  # fmt: skip

    def lowest(**before: str) -> Any:
        response = shop.http.get(f"/api/v1/prices/{product}/history", params={"location": "NY", **before})
        found = exactly(response)["lowest_30_days"]
        return found and (found["before"], str(found["everyone_price"]), str(found["member_price"]))

    assert lowest(before="2026-03-01") == ("2026-03-01", "12.00", "12.00")
    assert lowest(before="2026-02-28") == ("2026-02-28", "9.00", "9.00")
    assert lowest(before="2026-03-02") == ("2026-03-02", "7.00", "7.00")
    assert lowest(before="2026-01-02") == ("2026-01-02", "20.00", "20.00")
    assert lowest(before="2026-01-01") is not None, "in New York the first price began on the last day of December"
    assert lowest(before="2025-12-31") is None
    assert lowest()[1] == "7.00"
    assert paths(shop.http.get(f"/api/v1/prices/{product}/history?location=NY&before=0001-01-01")) == ["query.before"]


def test_a_simulation_answers_what_if_and_stores_nothing(shop: Shop) -> None:
    product = shop.product(category="Simulated")
    shop.happen("list_price.changed", product, "NY", data={"amount": 10})
    before = rows(shop)

    def simulated(**changes: Any) -> dict[str, Any]:
        response = shop.http.post(
            "/api/v1/prices/simulate", json={"product_id": product, "user_location": "NY", **changes}
        )
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = exactly(response)
        assert answer["source"] == "simulation"
        return answer

    policy = {"policy_id": "sim", "name": "Sim", "product_id": product, "location": "NY"}
    assert str(simulated()["final_price"]) == "10.00"
    assert str(simulated(list_price=11)["final_price"]) == "11.00"
    cost_plus = policy | {"kind": "cost_plus", "rate_percent": 50}
    assert str(simulated(cost=8, policies=[cost_plus])["final_price"]) == "12.00"
    assert simulated(policies=[cost_plus])["rejected"] == [{"rule": "sim", "name": "Sim", "reason": "no_cost"}]
    competitor = policy | {"kind": "competitor", "undercut_amount": 0.01}
    assert str(simulated(competitor_price=9.5, policies=[competitor])["final_price"]) == "9.49"
    market = policy | {"kind": "market", "rate_percent": 100}
    assert str(simulated(demand_index=1.2, policies=[market])["final_price"]) == "12.00"
    markdown = policy | {"kind": "markdown", "rate_percent": 30, "stock_threshold": 100}
    assert str(simulated(stock=100, policies=[markdown])["final_price"]) == "7.00"
    assert str(simulated(stock=99, policies=[markdown])["final_price"]) == "10.00"
    promotion = {
        "promotion_id": "sim",
        "name": "Sim",
        "product_id": product,
        "kind": "percent",
        "value": 20,
        "starts_at": "2030-01-01T00:00:00Z",
        "ends_at": "2030-02-01T00:00:00Z",
    }
    assert str(simulated(promotions=[promotion])["final_price"]) == "10.00"
    during = simulated(promotions=[promotion], as_of="2030-01-15T00:00:00Z")
    assert str(during["final_price"]) == "8.00"
    assert (during["computed_at"], during["valid_until"]) == ("2030-01-15T00:00:00Z", "2030-02-01T00:00:00Z")
    assert str(simulated(promotions=[promotion], as_of="2030-02-01T00:00:00Z")["final_price"]) == "10.00"
    assert rows(shop) == before
    assert shop.costs("10.00", product)


def test_a_simulation_with_a_wrong_rule_names_the_field(shop: Shop) -> None:
    product = shop.product()

    def refused(**changes: Any) -> list[str]:
        return paths(
            shop.http.post("/api/v1/prices/simulate", json={"product_id": product, "user_location": "NY", **changes})
        )

    rule = {"name": "Sim", "product_id": product, "location": "NY"}
    assert refused(cost=1.005) == ["body.cost"]
    assert refused(policies=[rule | {"policy_id": "p", "kind": "list", "floor": 1.005}]) == ["body.policies.0.floor"]
    promotion = rule | {"promotion_id": "p", "kind": "amount", "value": 0.001}
    assert refused(promotions=[promotion]) == ["body.promotions.0.value"]
    assert refused(promotions=[promotion | {"location": "nowhere", "value": 1}]) == ["body.promotions.0.location"]
    assert refused(as_of="9999-12-31T23:59:59-12:00") == ["body.as_of"]
    assert refused(as_of="2030-01-01T00:00:00") == ["body.as_of"]
    assert refused(stock=-1) == ["body.stock"]


def test_what_is_unknown_is_404_and_remembered_until_it_has_a_price(shop: Shop) -> None:
    product = shop.product({})
    detail = problem(shop.ask(product), 404, "not_found")["detail"]
    assert detail == f"product '{product}' has no price at 'NY'"
    (key,) = cached(shop, product)
    assert 0 < shop.cache.pttl(key) <= 33_000
    problem(shop.ask(product), 404, "not_found")
    shop.happen("list_price.changed", product, "NY", data={"amount": 5})
    assert shop.costs("5.00", product)
    for known in (shop.ask("no-such-product"), shop.http.get("/api/v1/prices/no-such-product?location=NY")):
        assert problem(known, 404, "not_found")["detail"] == "there is no product 'no-such-product'"
    assert problem(shop.ask(product, "nowhere"), 404, "not_found")["detail"] == "there is no location 'nowhere'"


def test_a_body_over_the_limit_is_413_whether_or_not_it_says_its_length(shop: Shop) -> None:
    body = b'{"product_id": "' + b"x" * 1_048_576 + b'"}'

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"Content-Type": "application/json"}
    problem(shop.http.post("/api/v1/price", content=body, headers=headers), 413, "body_too_large")
    problem(shop.http.post("/api/v1/price", content=parts(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"product_id": None}, "body.product_id"),
        ({"user_location": 7}, "body.user_location"),
        ({"is_prime_member": "perhaps"}, "body.is_prime_member"),
        ({"quantity": 0}, "body.quantity"),
        ({"quantity": 1_000_001}, "body.quantity"),
        ({"quantity": 1.5}, "body.quantity"),
        ({"colour": "red"}, "body.colour"),
    ],
)
def test_a_wrong_field_is_named(shop: Shop, change: dict[str, Any], path: str) -> None:
    body = {"product_id": "P-1", "user_location": "NY", **change}
    assert paths(shop.http.post("/api/v1/price", json=body)) == [path]


def test_a_missing_field_is_named_in_body_and_query(shop: Shop) -> None:
    assert paths(shop.http.post("/api/v1/price", json={})) == ["body.product_id", "body.user_location"]
    assert paths(shop.http.get("/api/v1/prices/P-1")) == ["query.location"]
    assert paths(shop.http.get("/api/v1/prices/P-1?location=NY&quantity=no")) == ["query.quantity"]
    assert paths(shop.http.get("/api/v1/prices/%20?location=NY")) == ["path.product_id"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"nul", b"\x00", b'{"product_id": "\xff\xfe"}', b"[" * 100_000, b"1" * 5000, b'{"a": "\\ud8']
)
def test_a_body_that_is_not_json_is_refused(shop: Shop, body: bytes) -> None:
    response = send(shop, "/api/v1/price", body)
    if body:
        problem(response, 400, "malformed_body")
    else:
        assert paths(response) == ["body"]


def test_a_wrong_method_is_405_and_names_the_right_ones(shop: Shop) -> None:
    for method, path, allowed in [
        ("DELETE", "/api/v1/price", {"POST"}),
        ("POST", "/api/v1/prices/P-1", {"GET"}),
        ("PATCH", "/api/v1/policies", {"GET", "POST"}),
        ("POST", "/api/v1/promotions/p", {"GET", "PUT", "DELETE"}),
        ("PUT", "/healthz", {"GET"}),
    ]:
        response = shop.http.request(method, path)
        problem(response, 405, "method_not_allowed")
        assert set(response.headers["allow"].split(", ")) == allowed
    problem(shop.http.get("/api/v2/price"), 404, "not_found")


POSTS = {
    "/api/v1/price": ["product_id", "user_location"],
    "/api/v1/prices/simulate": ["product_id", "user_location", "as_of"],
    "/api/v1/publish-market-event": ["id", "type", "source", "subject", "location", "time", "traceparent"],
    "/api/v1/policies": ["policy_id", "name", "product_id", "category", "department", "location", "currency", "kind"],
    "/api/v1/promotions": ["promotion_id", "name", "product_id", "category", "segment", "starts_at", "currency"],
}
COMPLETE: dict[str, dict[str, Any]] = {
    "/api/v1/price": {"product_id": "P", "user_location": "NY"},
    "/api/v1/prices/simulate": {"product_id": "P", "user_location": "NY"},
    "/api/v1/publish-market-event": {"type": "cost.changed", "subject": "odd", "location": "NY", "data": {"amount": 1}},
    "/api/v1/policies": {"policy_id": "odd", "name": "odd", "product_id": "odd", "kind": "list"},
    "/api/v1/promotions": {
        "promotion_id": "odd",
        "name": "odd",
        "product_id": "odd",
        "kind": "percent",
        "value": 1,
    },
}


def is_polite(response: httpx.Response) -> bool:
    """An answer, or a problem document, but no 5xx and nothing from inside."""
    if response.status_code < 300:
        return True
    assert response.status_code in (400, 404, 422), response.text[:500]
    problem(response, response.status_code, response.json()["code"])
    return len(response.content) < 10_000


@pytest.mark.parametrize("path", POSTS)
def test_odd_strings_in_any_field_are_answered_politely(shop: Shop, path: str) -> None:
    for field, odd in itertools.product(POSTS[path], ODD_STRINGS):
        assert is_polite(send(shop, path, json.dumps(COMPLETE[path] | {field: odd}))), (field, odd)
    for odd in (LONE_SURROGATE, "\x00", "", "x" * 100_000):
        assert is_polite(send(shop, path, json.dumps(COMPLETE[path] | {odd: 1}))), odd
        assert is_polite(send(shop, path, json.dumps(COMPLETE[path] | {"data": {odd: odd}}))), odd
        assert is_polite(send(shop, path, json.dumps([odd]))), odd
    shop.settle()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/v1/price", ["quantity", "is_prime_member"]),
        ("/api/v1/prices/simulate", ["quantity", "cost", "list_price", "demand_index", "stock"]),
        ("/api/v1/policies", ["rate_percent", "floor", "max_change_percent", "stock_threshold", "rounding_increment"]),
        ("/api/v1/promotions", ["value", "priority"]),
        ("/api/v1/publish-market-event", ["data"]),
    ],
)
def test_odd_numbers_in_any_field_are_answered_politely(shop: Shop, path: str, fields: list[str]) -> None:
    for field, odd in itertools.product(fields, [*ODD_NUMBERS, '"1e-1000000"', '"1e999999999"', '"NaN"']):
        shown = f'{{"amount": {odd}}}' if field == "data" else odd
        body = json.dumps(COMPLETE[path] | {field: "here"}).replace('"here"', shown)
        assert is_polite(send(shop, path, body)), (field, odd)
    shop.settle()


def test_odd_strings_in_urls_and_headers_are_answered_politely(shop: Shop) -> None:
    for odd in ODD_STRINGS:
        text = odd.encode(errors="replace").decode()[:1000]
        for url in ("/api/v1/prices/x", "/api/v1/prices/x/history"):
            assert is_polite(shop.http.get(url, params={"location": text}))
        for url in ("/api/v1/policies", "/api/v1/promotions"):
            assert is_polite(shop.http.get(url, params={"after": text}))
        quoted = httpx.QueryParams({"": text}).__str__().removeprefix("=").replace("+", "%20")
        for url in (f"/api/v1/prices/a{quoted}?location=NY", f"/api/v1/policies/a{quoted}", f"/api/v1/tasks/{quoted}z"):
            assert is_polite(shop.http.get(url))
    for header in ("If-None-Match", "Idempotency-Key", "traceparent", "tracestate"):
        for value in (b"\xff\xfe", b"x" * 5000, b'W/"', b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"):
            response = shop.http.get("/api/v1/prices/x?location=NY", headers={header.encode(): value})
            assert is_polite(response)
