"""Policies and promotions come back as they were stored, and reach the formula as they were meant."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from app.adapters.store import Store
from app.domain.columns import ABSENT, NEVER, Table
from app.domain.rules import Policy, Promotion
from app.errors import AlreadyExists, InvalidInput, NotFound

Row = Callable[..., Table]
EVERY_POLICY: list[dict[str, Any]] = [
    {"kind": "list"},
    {"kind": "market", "rate_percent": 33.33, "max_change_percent": 400},
    {"kind": "competitor", "rate_percent": 100, "undercut_amount": 0.01, "product_id": "P-1", "location": "NY"},
    {"kind": "cost_plus", "rate_percent": 0.01, "min_margin_percent": 99.99, "category": "Coffee"},
    {"kind": "markdown", "rate_percent": 50, "stock_threshold": 10**12, "department": "Drinks", "currency": "JPY"},
    {"kind": "list", "floor": 0.05, "ceiling": 99_999_999.99, "currency": "USD"},
    {"kind": "list", "floor": 0, "ceiling": 500, "location": "TYO"},
    {"kind": "list", "rounding_increment": 1, "rounding_ending": 0.99, "rounding_scope": "line", "location": "NY"},
    {"kind": "list", "tiers": [{"min_quantity": 2, "percent": 0.5}, {"min_quantity": 1_000_000, "percent": 100}]},
    {"kind": "list", "category": "Not a category yet"},
]
EVERY_PROMOTION: list[dict[str, Any]] = [
    {"kind": "percent", "value": 12.34},
    {"kind": "percent", "value": 100, "segment": "member", "stackable": False, "priority": 1_000_000},
    {"kind": "amount", "value": 0.01, "currency": "USD", "category": "Tea"},
    {"kind": "fixed", "value": 980, "location": "TYO", "product_id": "P-2"},
    {"kind": "fixed", "value": 0, "department": "Drinks"},
    {"kind": "percent", "value": 5, "starts_at": datetime(2026, 3, 1, 5, tzinfo=UTC)},
    {
        "kind": "percent",
        "value": 5,
        "starts_at": datetime(1970, 1, 1, tzinfo=UTC),
        "ends_at": datetime(9998, 12, 31, 23, 59, 59, 999_000, tzinfo=timezone(timedelta(hours=9))),
    },
]


def policy(policy_id: str = "p", **fields: Any) -> Policy:
    return Policy.model_validate({"policy_id": policy_id, "name": "Ein Name – 名前", "kind": "list"} | fields)


def promotion(promotion_id: str = "p", **fields: Any) -> Promotion:
    given = {"promotion_id": promotion_id, "name": "n", "kind": "percent", "value": 10}
    return Promotion.model_validate(given | fields)


@pytest.mark.parametrize("fields", EVERY_POLICY)
def test_a_policy_comes_back_as_it_was_saved(store: Store, fields: dict[str, Any]) -> None:
    saved = policy(**fields)
    with store.transaction() as tx:
        assert tx.rules.save_policy(saved, 1)
    with store.transaction() as tx:
        assert tx.rules.policy("p") == saved
        assert tx.rules.policies_after("", 10) == [saved]
        assert tx.rules.policies_after("p", 10) == []


@pytest.mark.parametrize("fields", EVERY_PROMOTION)
def test_a_promotion_comes_back_as_it_was_saved(store: Store, fields: dict[str, Any]) -> None:
    saved = promotion(**fields)
    with store.transaction() as tx:
        assert tx.rules.save_promotion(saved, 1)
    with store.transaction() as tx:
        assert tx.rules.promotion("p") == saved
        assert tx.rules.promotions_after("", 10) == [saved]


def test_an_instant_is_kept_to_the_millisecond(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_promotion(promotion(ends_at=datetime(2030, 1, 1, 0, 0, 0, 123_999, tzinfo=UTC)), 1)
        assert tx.rules.promotion("p").ends_at == datetime(2030, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)


def test_amounts_come_back_with_the_decimals_of_their_currency(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_policy(policy(floor=1.5, location="NY"), 1)
        tx.rules.save_promotion(promotion(kind="fixed", value=150, location="TYO"), 1)
        assert str(tx.rules.policy("p").floor) == "1.50"
        assert str(tx.rules.promotion("p").value) == "150"


def test_the_formula_gets_minor_units_basis_points_and_milliseconds(store: Store, row: Row) -> None:
    with store.transaction() as tx:
        tx.rules.save_policy(
            policy(
                product_id="P-1",
                location="NY",
                kind="competitor",
                rate_percent=2.5,
                undercut_amount=0.05,
                floor=7,
                max_change_percent=30,
                rounding_increment=1,
                rounding_ending=0.99,
                rounding_scope="line",
                tiers=[{"min_quantity": 5, "percent": 7.5}],
            ),
            77,
        )
        starts_at = datetime(2026, 1, 1, tzinfo=UTC)
        tx.rules.save_promotion(promotion(kind="amount", value=1.25, currency="USD", starts_at=starts_at), 78)
        rules = tx.rules.rules(row(), 0)
    ((product, location),) = row().tolist()
    (found,) = rules.policies
    expected = {
        "product_key": product, "category_key": ABSENT, "department_key": ABSENT, "location_key": location,
        "currency_number": ABSENT, "kind": 2, "rate_bp": 250, "amount": 5, "floor": 700, "ceiling": ABSENT,
        "min_margin_bp": ABSENT, "max_change_bp": 3000, "rounding_increment": 100, "rounding_ending": 99,
        "line_rounding": 1,
    }  # fmt: skip
    assert {name: int(found[name]) for name in expected} == expected
    assert rules.tiers[["min_quantity", "off_bp"]].tolist() == [(5, 750)]
    (found,) = rules.promotions
    expected = {"product_key": ABSENT, "currency_number": 840, "kind": 1, "value": 125, "ends_at": NEVER}
    assert {name: int(found[name]) for name in expected} == expected
    assert int(found["starts_at"]) == int(starts_at.timestamp() * 1000)


def test_only_rules_that_may_concern_the_rows_are_read(database_url: str, store: Store, row: Row) -> None:
    ended = datetime(2026, 1, 10, tzinfo=UTC)
    with store.transaction() as tx:
        for n, fields in enumerate(
            [
                {"product_id": "P-1"},
                {"product_id": "P-2"},
                {"location": "TYO"},
                {"location": "NY"},
                {"category": "Tea"},
                {"ends_at": ended},
            ]
        ):
            tx.rules.save_promotion(promotion(f"{n}", **fields), 1)
    with psycopg.connect(database_url) as connection:
        ids = dict(connection.execute("SELECT promotion_key, promotion_id FROM promotions").fetchall())
    with store.transaction() as tx:

        def read(as_of: datetime) -> list[str]:
            rules = tx.rules.rules(row("P-1", "NY"), int(as_of.timestamp() * 1000))
            return sorted(ids[key] for key in rules.promotions["promotion_key"].tolist())

        # A category's rule is read with every batch, and matched by the formula; one that ended is named for a day.
        assert read(ended + timedelta(hours=23)) == ["0", "3", "4", "5"]
        assert read(ended + timedelta(hours=25)) == ["0", "3", "4"]


def test_what_was_said_later_stays(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.rules.save_policy(policy(name="newer"), 10)
        assert not tx.rules.save_policy(policy(name="older"), 9)
        assert tx.rules.policy("p").name == "newer"
        assert tx.rules.remove_policy("p", 9) is None
        assert tx.rules.policy("p").name == "newer"
        assert tx.rules.save_policy(policy(name="the same event again"), 10)


def test_what_was_removed_stays_removed_until_something_newer_is_said(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_promotion(promotion(), 5)
        assert tx.rules.remove_promotion("p", 6) == promotion()
        with pytest.raises(NotFound):
            tx.rules.promotion("p")
        assert tx.rules.promotions_after("", 10) == []
        assert not tx.rules.save_promotion(promotion(), 5)
        assert tx.rules.remove_promotion("p", 7) is None
        assert tx.rules.save_promotion(promotion(value=20), 8, new=True)
        assert tx.rules.promotion("p").value == Decimal(20)
        with pytest.raises(AlreadyExists):
            tx.rules.save_promotion(promotion(), 9, new=True)


def test_a_second_removal_counts_as_much_as_the_first(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_promotion(promotion(), 5)
        tx.rules.remove_promotion("p", 6)
        tx.rules.remove_promotion("p", 9)
        assert not tx.rules.save_promotion(promotion(), 8)
        assert tx.rules.save_promotion(promotion(), 10)


FUTURE = 2**62
"""The position of something that a clock far ahead gave."""


def test_what_is_done_by_hand_is_newer_than_all_that_was_said(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_policy(policy(name="of an event"), FUTURE)
        assert tx.rules.save_policy(policy(name="by hand"), 1, by_hand=True)
        assert tx.rules.policy("p").name == "by hand"
        assert not tx.rules.save_policy(policy(name="the event again"), FUTURE), "its position is the higher one now"
        assert tx.rules.remove_policy("p", 1, by_hand=True) == policy(name="by hand")
        assert not tx.rules.save_policy(policy(name="the event again"), FUTURE + 1)
        assert tx.rules.save_policy(policy(name="new by hand"), 1, new=True, by_hand=True)
        assert tx.rules.policy("p").name == "new by hand"
        assert tx.rules.save_policy(policy(name="a later event"), FUTURE + 4)


def test_what_is_created_by_hand_is_newer_than_a_removal_that_came_before(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.rules.remove_promotion("p", FUTURE) is None
        assert tx.rules.save_promotion(promotion(), 1, by_hand=True)
        assert tx.rules.promotion("p") == promotion()


def test_one_policy_per_scope_and_a_refusal_leaves_the_transaction_usable(store: Store) -> None:
    with store.transaction() as tx:
        tx.rules.save_policy(policy("one", category="Coffee"), 1)
        with pytest.raises(InvalidInput, match="same scope"):
            tx.rules.save_policy(policy("two", category="Coffee"), 2)
        assert tx.rules.save_policy(policy("two", category="Coffee", currency="USD"), 2)
        tx.rules.remove_policy("one", 3)
        assert tx.rules.save_policy(policy("three", category="Coffee"), 4)
    with store.transaction() as tx:
        assert [found.policy_id for found in tx.rules.policies_after("", 10)] == ["three", "two"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"product_id": "P-9"}, "product_id"),
        ({"location": "LA"}, "location"),
        ({"location": "NY", "floor": 0.001}, "floor"),
        ({"location": "TYO", "rounding_increment": 0.5}, "rounding_increment"),
    ],
)
def test_what_does_not_fit_the_catalogue_is_refused_with_its_field(
    store: Store, fields: dict[str, Any], path: str
) -> None:
    with store.transaction() as tx, pytest.raises(InvalidInput) as refused:
        tx.rules.save_policy(policy(**fields), 1)
    assert refused.value.path == path
