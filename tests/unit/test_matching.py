"""Which rules concern which rows."""

from itertools import product

import pytest
from hypothesis import given

from app.domain.columns import ABSENT, PRICE_INPUTS, PROMOTIONS
from app.domain.matching import every_match, most_specific
from tests.unit.strategies import Batch, batch, batches, policy, promotion, row, table

SCOPES = [{"product_key": 1}, {"category_key": 1}, {"department_key": 1}, {}]
PLACES = [{"location_key": 1}, {"currency_number": 840}, {}]
BY_SPECIFICITY = [scope | place for scope, place in product(SCOPES, PLACES)]
"""Product before category before department before all, then location before currency before all."""

FIELDS = ("product_key", "category_key", "department_key", "location_key", "currency_number")


def names_of_policies(some: Batch) -> list[str | None]:
    return [sheet.policy for sheet in some.sheets()]


@pytest.mark.parametrize("nth", range(len(BY_SPECIFICITY)))
def test_the_most_specific_policy_wins(nth: int) -> None:
    rest = [policy(key, **scope) for key, scope in enumerate(BY_SPECIFICITY)][nth:]
    for policies in (rest, rest[::-1]):
        some = batch([row(category_key=1, department_key=1)], policies)
        assert names_of_policies(some) == [f"pol-{nth}"]


@given(batches())
def test_a_rule_and_a_row_meet_where_all_that_the_rule_names_is_the_rows(some: Batch) -> None:
    rows, rules = every_match(some.inputs, some.rules.promotions)
    named = [
        (i, j)
        for i, row in enumerate(some.inputs)
        for j, rule in enumerate(some.rules.promotions)
        if all(rule[field] in (ABSENT, row[field]) for field in FIELDS)
    ]
    assert sorted(zip(rows.tolist(), rules.tolist(), strict=True)) == named


@given(batches())
def test_a_row_without_a_policy_is_one_that_no_policy_names(some: Batch) -> None:
    chosen = most_specific(some.inputs, some.rules.policies)
    rows, _ = every_match(some.inputs, some.rules.policies)
    assert {i for i, policy in enumerate(chosen) if policy != ABSENT} == set(rows.tolist())


def test_a_row_without_category_or_department_meets_only_rules_that_name_none() -> None:
    inputs = table(PRICE_INPUTS, row())
    rules = [promotion(key, **scope) for key, scope in enumerate([{"category_key": 1}, {"department_key": 1}, {}])]
    rows, found = every_match(inputs, table(PROMOTIONS, *rules))
    assert (rows.tolist(), found.tolist()) == ([0], [2])


@pytest.mark.parametrize("key", [1, 2**31 - 1])
def test_keys_as_large_as_the_store_gives_do_not_collide(key: int) -> None:
    inputs = table(PRICE_INPUTS, *({"product_key": key - d, "location_key": key - e} for d in (0, 1) for e in (0, 1)))
    rules = table(PROMOTIONS, promotion(product_key=key, location_key=key))
    assert every_match(inputs, rules)[0].tolist() == [0]


def test_no_rules_concern_no_rows() -> None:
    none = table(PROMOTIONS)
    assert most_specific(table(PRICE_INPUTS, row()), none).tolist() == [ABSENT]
    assert [part.tolist() for part in every_match(table(PRICE_INPUTS, row()), none)] == [[], []]
