"""Policies and promotions as people write them: what is accepted, and what is refused, and where."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from app.domain.rules import Policy, Promotion, Scope

POLICY = {"policy_id": "p", "name": "A policy", "kind": "list"}
PROMOTION = {"promotion_id": "p", "name": "An offer", "kind": "percent", "value": 10}


def problems(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, str]:
    """Message by path of every field that is wrong."""
    try:
        model.model_validate(fields)
    except ValidationError as error:
        return {".".join(map(str, problem["loc"])): problem["msg"] for problem in error.errors()}
    return {}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"product_id": "P-1", "location": "NY"},
        {"category": "Dairy & eggs", "currency": "EUR"},
        {"kind": "competitor", "rate_percent": 100, "undercut_amount": "0.05", "currency": "USD"},
        {"kind": "cost_plus", "rate_percent": 400, "min_margin_percent": "99.99"},
        {"floor": 5, "ceiling": 5, "location": "NY"},
        {"floor": 0, "rounding_increment": 0, "rounding_ending": 0},
        {"rounding_increment": "1.00", "rounding_ending": "0.99", "location": "NY"},
        {"tiers": [{"min_quantity": 2, "percent": 5}, {"min_quantity": 3, "percent": 5}]},
    ],
)
def test_a_sound_policy_is_accepted_and_survives_json(fields: dict[str, Any]) -> None:
    policy = Policy.model_validate(POLICY | fields)
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"policy_id": "no spaces"}, "policy_id", "pattern"),
        ({"policy_id": "p\n"}, "policy_id", "pattern"),
        ({"policy_id": "x" * 101}, "policy_id", "pattern"),
        ({"name": ""}, "name", "at least 1"),
        ({"name": "a\x00b"}, "name", "pattern"),
        ({"kind": "magic"}, "kind", "'list'"),
        ({"colour": "red"}, "colour", "Extra"),
        ({"rate_percent": "1.001"}, "rate_percent", "2 decimal places"),
        ({"rate_percent": "400.01"}, "rate_percent", "less than or equal to 400"),
        ({"rate_percent": -1}, "rate_percent", "greater than or equal to 0"),
        ({"rate_percent": "NaN"}, "rate_percent", "finite"),
        ({"min_margin_percent": 100}, "min_margin_percent", "less than 100"),
        ({"floor": -1, "location": "NY"}, "floor", "greater than or equal to 0"),
        ({"ceiling": "1E+11", "location": "NY"}, "ceiling", "less than or equal"),
        ({"floor": "Infinity", "location": "NY"}, "floor", "finite"),
        ({"currency": "usd"}, "currency", "pattern"),
        ({"currency": "ZZZ"}, "currency", "not an ISO 4217"),
        ({"currency": "XXX"}, "currency", "priced in"),
        ({"product_id": "a", "category": "b"}, "", "at most one of product_id"),
        ({"category": "a", "department": "b"}, "", "at most one of product_id"),
        ({"location": "NY", "currency": "USD"}, "", "at most one of location"),
        ({"floor": 1}, "", "need a location or a currency"),
        ({"ceiling": 1}, "", "need a location or a currency"),
        ({"undercut_amount": 1}, "", "need a location or a currency"),
        ({"rounding_increment": 1}, "", "need a location or a currency"),
        ({"rounding_ending": "0.99"}, "", "rounding_ending must be below"),
        ({"rounding_increment": 1, "rounding_ending": 1, "location": "NY"}, "", "rounding_ending must be below"),
        ({"floor": 2, "ceiling": 1, "location": "NY"}, "", "floor must not be above"),
        ({"kind": "competitor", "rate_percent": "100.01"}, "", "at most 100"),
        ({"kind": "markdown", "rate_percent": 101}, "", "at most 100"),
        ({"tiers": [{"min_quantity": 1, "percent": 5}]}, "tiers.0.min_quantity", "greater than or equal to 2"),
        ({"tiers": [{"min_quantity": 2, "percent": 101}]}, "tiers.0.percent", "less than or equal to 100"),
        ({"tiers": [{"min_quantity": n, "percent": 5} for n in (2, 2)]}, "", "tiers must rise"),
        ({"tiers": [{"min_quantity": 2 + n, "percent": 9 - n} for n in (0, 1)]}, "", "tiers must rise"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(fields: dict[str, Any], path: str, message: str) -> None:
    found = problems(Policy, POLICY | fields)
    assert list(found) == [path]
    assert message in found[path]


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0},
        {"value": "100.00"},
        {"value": "12.5000"},
        {"kind": "amount", "value": "1.50", "currency": "USD"},
        {"kind": "fixed", "value": 0, "segment": "member"},
        {"kind": "fixed", "value": "9.99", "location": "NY", "stackable": False, "priority": 0},
        {"starts_at": "2024-01-01T00:00:00Z"},
        {"starts_at": "2024-01-01T00:00:00+02:00", "ends_at": "2024-01-01T00:00:00Z"},
    ],
)
def test_a_sound_promotion_is_accepted_and_survives_json(fields: dict[str, Any]) -> None:
    promotion = Promotion.model_validate(PROMOTION | fields)
    assert Promotion.model_validate_json(promotion.model_dump_json()) == promotion


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"value": "100.01"}, "", "at most 100"),
        ({"value": "0.001"}, "", "two decimals"),
        ({"value": "10." + "0" * 40 + "1"}, "", "two decimals"),
        ({"value": "1E-999999"}, "", "two decimals"),
        ({"value": -1}, "value", "greater than or equal to 0"),
        ({"kind": "amount", "value": 1}, "", "need a location or a currency"),
        ({"kind": "fixed", "value": 1}, "", "need a location or a currency"),
        ({"priority": -1}, "priority", "greater than or equal to 0"),
        ({"segment": "vip"}, "segment", "'everyone'"),
        ({"starts_at": "2024-01-01T00:00:00"}, "starts_at", "timezone"),
        ({"starts_at": "2024-01-01T00:00:00Z", "ends_at": "2024-01-01T00:00:00Z"}, "", "ends_at must be after"),
        ({"starts_at": "1969-12-31T23:59:59Z"}, "starts_at", "between 1970 and 9998"),
        ({"starts_at": "1970-01-01T00:00:00+05:00"}, "starts_at", "between 1970 and 9998"),
        ({"ends_at": "9999-01-01T00:00:00Z"}, "ends_at", "between 1970 and 9998"),
        ({"ends_at": "9998-12-31T23:59:59-14:00"}, "ends_at", "between 1970 and 9998"),
    ],
)
def test_a_promotion_that_cannot_be_is_refused(fields: dict[str, Any], path: str, message: str) -> None:
    found = problems(Promotion, PROMOTION | fields)
    assert list(found) == [path]
    assert message in found[path]


@given(st.integers(0, 10_000))
def test_every_percent_to_the_hundredth_is_a_promotion(points: int) -> None:
    value = Decimal(points).scaleb(-2)
    assert Promotion.model_validate(PROMOTION | {"value": value}).value == value


@given(st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1)), st.integers(1, 10**6))
def test_a_window_that_ends_before_it_starts_is_refused(start: datetime, earlier: int) -> None:
    window = {"starts_at": f"{start.isoformat()}Z", "ends_at": f"{start.isoformat()}+{earlier % 23 + 1:02}:00"}
    assert "ends_at must be after starts_at" in problems(Promotion, PROMOTION | window)[""]


def test_nothing_set_means_everything() -> None:
    assert set(Scope().model_dump().values()) == {None}
