"""Policies and promotions: kept, checked, paged, and seen in prices as soon as they change."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.shop import Shop, exactly, paths, prices, problem
from tests.support.waiting import eventually

PROMOTIONS, POLICIES = "/api/v1/promotions", "/api/v1/policies"


def promotion(product: str, **changes: Any) -> dict[str, Any]:
    """Ten percent off a product."""
    return {
        "promotion_id": f"off-{product}",
        "name": "Ten off",
        "product_id": product,
        "kind": "percent",
        "value": 10,
    } | changes


def policy(product: str, **changes: Any) -> dict[str, Any]:
    """A product in New York sold at its cost plus a half."""
    return {
        "policy_id": f"plus-{product}",
        "name": "Cost plus",
        "product_id": product,
        "location": "NY",
        "kind": "cost_plus",
        "rate_percent": 50,
    } | changes


def price_becomes(shop: Shop, expected: str, product: str, **context: Any) -> None:
    eventually(lambda: str(shop.price(product, **context)) == expected)


def cause_of_last(shop: Shop, product: str) -> str:
    return str(shop.history(product)[0]["cause"])


def causes(events: list[dict[str, Any]], type_: str) -> list[str]:
    """Those of that type, as history names them."""
    return [f"event:{event['id']}" for event in events if event["type"] == type_]


def test_a_promotion_lives_from_creation_to_removal(shop: Shop) -> None:
    product = shop.product()
    url = f"{PROMOTIONS}/off-{product}"
    window = {"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2090-01-01T00:00:00Z"}
    created = shop.http.post(PROMOTIONS, json=promotion(product, **window))
    assert created.status_code == 201
    assert created.headers["location"] == url
    full = promotion(product, **window) | {
        "category": None,
        "department": None,
        "location": None,
        "currency": None,
        "segment": "everyone",
        "stackable": True,
        "priority": 100,
    }
    assert created.json() == shop.http.get(url).json() == full
    problem(shop.http.post(PROMOTIONS, json=promotion(product)), 409, "already_exists")
    replaced = shop.http.put(url, json=promotion(product, value=20.5))
    assert replaced.status_code == 200
    assert str(exactly(replaced)["value"]) == "20.50"
    assert shop.http.get(url).json()["starts_at"] is None
    removed = shop.http.delete(url)
    assert (removed.status_code, removed.content) == (204, b"")
    problem(shop.http.get(url), 404, "not_found")
    problem(shop.http.delete(url), 404, "not_found")
    assert shop.http.post(PROMOTIONS, json=promotion(product)).status_code == 201


def test_a_policy_lives_from_creation_to_removal(shop: Shop) -> None:
    product = shop.product()
    url = f"{POLICIES}/plus-{product}"
    tiers = [{"min_quantity": 5, "percent": 5}, {"min_quantity": 10, "percent": 10}]
    body = policy(product, floor=3.5, ceiling=99, rounding_increment=1, rounding_ending=0.99, tiers=tiers)
    created = shop.http.post(POLICIES, json=body)
    assert created.status_code == 201
    assert created.headers["location"] == url
    stored = shop.http.get(url)
    assert stored.json() == created.json()
    assert '"floor":3.50,' in stored.text
    assert '"ceiling":99.00,' in stored.text
    assert [tier["min_quantity"] for tier in stored.json()["tiers"]] == [5, 10]
    problem(shop.http.post(POLICIES, json=body), 409, "already_exists")
    put = shop.http.put(
        f"{POLICIES}/other-{product}", json=policy(product, policy_id=f"other-{product}", location="LA")
    )
    assert put.status_code == 200
    assert shop.http.put(url, json=policy(product)).json()["floor"] is None
    assert shop.http.delete(url).status_code == 204
    problem(shop.http.get(url), 404, "not_found")
    assert shop.http.post(POLICIES, json=body).status_code == 201


@pytest.mark.parametrize(("url", "kind", "make"), [(PROMOTIONS, "promotion", promotion), (POLICIES, "policy", policy)])
def test_lists_come_in_pages_by_id(shop: Shop, url: str, kind: str, make: Any) -> None:
    # Ids that sort after every other test's, so that the last page is ours alone.
    ids = [f"zz-{kind}-{n}" for n in range(5)]
    for rule_id in ids:
        assert shop.http.post(url, json=make(shop.product(), **{f"{kind}_id": rule_id})).status_code == 201
    found, after = [], "zz"
    pages = 0
    while after is not None:
        page = shop.http.get(url, params={"after": after, "limit": 2}).json()
        found += [item[f"{kind}_id"] for item in page["items"]]
        after, pages = page["next_after"], pages + 1
    assert (found, pages) == (ids, 3)
    assert paths(shop.http.get(url, params={"limit": 0})) == ["query.limit"]


def test_the_id_in_the_url_and_in_the_body_are_one(shop: Shop) -> None:
    product = shop.product()
    assert paths(shop.http.put(f"{PROMOTIONS}/another", json=promotion(product))) == ["body.promotion_id"]
    assert paths(shop.http.put(f"{POLICIES}/another", json=policy(product))) == ["body.policy_id"]


def test_two_policies_cannot_share_a_scope(shop: Shop) -> None:
    product = shop.product()
    assert shop.http.post(POLICIES, json=policy(product)).status_code == 201
    refused = shop.http.post(POLICIES, json=policy(product, policy_id=f"second-{product}"))
    assert "same scope" in problem(refused, 422, "invalid_input")["detail"]
    assert shop.http.post(POLICIES, json=policy(product, policy_id=f"second-{product}", location="LA")).is_success
    assert shop.http.delete(f"{POLICIES}/plus-{product}").is_success
    assert shop.http.post(POLICIES, json=policy(product, policy_id=f"third-{product}")).is_success


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"value": 100.01}, "body"),
        ({"value": 0.001}, "body"),
        ({"kind": "amount", "value": 1}, "body"),  # in which currency?
        ({"kind": "amount", "value": 0.001, "location": "NY"}, "body.value"),
        ({"kind": "fixed", "value": 10.5, "location": "TYO"}, "body.value"),
        ({"kind": "fixed", "value": 1, "currency": "XXX"}, "body.currency"),
        ({"category": "Tea"}, "body"),
        ({"location": "NY", "currency": "USD"}, "body"),
        ({"location": "nowhere"}, "body.location"),
        ({"product_id": "nothing"}, "body.product_id"),
        ({"starts_at": "2030-01-02T00:00:00Z", "ends_at": "2030-01-02T00:00:00Z"}, "body"),
        ({"starts_at": "2030-01-02T00:00:00"}, "body.starts_at"),
    ],
)
def test_a_promotion_that_makes_no_sense_is_refused_with_its_field(
    shop: Shop, changes: dict[str, Any], path: str
) -> None:
    assert paths(shop.http.post(PROMOTIONS, json=promotion(shop.product(), **changes))) == [path]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"floor": 1.005}, "body.floor"),
        ({"location": "TYO", "ceiling": 10.5}, "body.ceiling"),
        ({"location": "TYO", "rounding_increment": 10, "rounding_ending": 9.9}, "body.rounding_ending"),
        ({"floor": 2, "ceiling": 1}, "body"),
        ({"rounding_increment": 1, "rounding_ending": 1}, "body"),
        ({"min_margin_percent": 100}, "body.min_margin_percent"),
        ({"tiers": [{"min_quantity": 1, "percent": 5}]}, "body.tiers.0.min_quantity"),
        ({"location": None, "floor": 2}, "body"),
        ({"kind": "auction"}, "body.kind"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_its_field(shop: Shop, changes: dict[str, Any], path: str) -> None:
    assert paths(shop.http.post(POLICIES, json=policy(shop.product(), **changes))) == [path]


def test_every_change_of_a_promotion_shows_in_prices_and_in_history(shop: Shop) -> None:
    product = shop.product({"NY": 2000})
    shop.happen("list_price.changed", product, "NY", data={"amount": 20})
    url = f"{PROMOTIONS}/off-{product}"
    for change, expected in [
        (lambda: shop.http.post(PROMOTIONS, json=promotion(product)), "18.00"),
        (lambda: shop.http.put(url, json=promotion(product, value=25)), "15.00"),
        (lambda: shop.http.put(url, json=promotion(product, kind="fixed", value=12, currency="USD")), "12.00"),
        (lambda: shop.http.put(url, json=promotion(product, location="LA")), "20.00"),
        (lambda: shop.http.put(url, json=promotion(product, segment="everyone")), "18.00"),
        (lambda: shop.http.delete(url), "20.00"),
    ]:
        with shop.recording() as events:
            assert change().is_success
            price_becomes(shop, expected, product)
        assert shop.quote(product)["source"] == "cache"
        shop.settle()
        assert cause_of_last(shop, product) in causes(events, "promotion.changed")
    assert prices(shop.history(product)) == ["20.00", "18.00", "20.00", "12.00", "15.00", "18.00", "20.00"]


def test_every_change_of_a_policy_shows_in_prices_and_in_history(shop: Shop) -> None:
    product = shop.product({"NY": 2000}, category=f"Shelf {time.monotonic_ns()}")
    shop.happen("cost.changed", product, "NY", data={"amount": 10})
    url = f"{POLICIES}/plus-{product}"
    for change, expected in [
        (lambda: shop.http.post(POLICIES, json=policy(product)), "15.00"),
        (lambda: shop.http.put(url, json=policy(product, rate_percent=60)), "16.00"),
        (lambda: shop.http.put(url, json=policy(product, rounding_increment=1, rounding_ending=0.99)), "14.99"),
        (lambda: shop.http.put(url, json=policy(product, location="LA")), "20.00"),
        (lambda: shop.http.put(url, json=policy(product, kind="list", floor=25)), "25.00"),
        (lambda: shop.http.delete(url), "20.00"),
    ]:
        with shop.recording() as events:
            assert change().is_success
            price_becomes(shop, expected, product)
        shop.settle()
        assert cause_of_last(shop, product) in causes(events, "policy.changed")


def test_a_rule_for_a_category_prices_every_product_of_it_and_no_other(shop: Shop) -> None:
    category = f"Aisle {time.monotonic_ns()}"
    inside, outside = [shop.product(category=category) for _ in range(3)], shop.product()
    body = promotion(inside[0], product_id=None, category=category, value=50)
    assert shop.http.post(PROMOTIONS, json=body).is_success
    for product in inside:
        price_becomes(shop, "6.25", product)
    assert shop.costs("12.50", outside)
    # A product's own policy is more specific than its category's.
    wide = policy(inside[0], policy_id=f"wide-{inside[0]}", product_id=None, category=category, kind="list", floor=11)
    narrow = policy(inside[0], kind="list", floor=9)
    assert shop.http.post(POLICIES, json=wide).is_success
    assert shop.http.post(POLICIES, json=narrow).is_success
    price_becomes(shop, "9.00", inside[0])
    price_becomes(shop, "11.00", inside[1])
    assert shop.quote(inside[1])["adjustments"][-1]["step"] == "floor"


def test_a_promotion_begins_and_ends_at_its_second_also_in_the_cache(shop: Shop) -> None:
    product = shop.product({"NY": 2000})
    shop.happen("list_price.changed", product, "NY", data={"amount": 20})
    now = datetime.now(UTC)
    starts_at, ends_at = now + timedelta(seconds=2), now + timedelta(seconds=4)
    body = promotion(product, starts_at=starts_at.isoformat(), ends_at=ends_at.isoformat())
    assert shop.http.post(PROMOTIONS, json=body).is_success
    shop.settle()
    before = shop.quote(product)
    assert str(before["final_price"]) == "20.00"
    assert datetime.fromisoformat(before["valid_until"]) == starts_at.replace(
        microsecond=starts_at.microsecond // 1000 * 1000
    )
    assert before["rejected"][0]["reason"] == "not_started"

    samples: list[tuple[datetime, datetime, str, str]] = []

    def over() -> bool:
        asked = datetime.now(UTC)
        quote = shop.quote(product)
        samples.append((asked, datetime.now(UTC), str(quote["final_price"]), quote["source"]))
        return asked > ends_at + timedelta(seconds=0.5) and len(shop.history(product)) == 4

    eventually(over, timeout_s=20)
    early = {(price, source) for _, answered, price, source in samples if answered < starts_at}
    during = {
        (price, source) for asked, answered, price, source in samples if starts_at <= asked and answered < ends_at
    }
    late = {(price, source) for asked, _, price, source in samples if asked >= ends_at}
    assert {price for price, _ in early} == {"20.00"}
    assert {price for price, _ in during} == {"18.00"}
    assert {price for price, _ in late} == {"20.00"}
    assert ("18.00", "cache") in during
    assert ("20.00", "cache") in late
    assert shop.causes(product)[2:] == ["boundary", "boundary"]
    assert prices(shop.history(product)) == ["20.00", "18.00", "20.00", "20.00"]
    assert shop.quote(product)["rejected"][0]["reason"] == "ended"
