"""Policies and promotions that are not stored, but supposed: what prices would be with them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.adapters.rule_rows import policy_row, promotion_row
from app.adapters.rule_tables import RuleTables
from app.adapters.schema import policies, promotions
from app.domain.columns import ABSENT, NEVER, POLICIES, PROMOTIONS, TIERS, Rules, Table
from app.domain.money import currency
from app.domain.rules import Policy, Promotion
from app.domain.sheet import Label, Labels
from app.errors import within

_SCOPE_FIELDS = ("product_key", "category_key", "department_key", "location_key", "currency_number")

_UNSTORED = 2**40
"""Keys from here on are of rules that are only supposed; no stored one comes near."""


class SupposedRules:
    def __init__(self, connection: sa.Connection, rules: RuleTables) -> None:
        self._connection, self._rules = connection, rules

    def with_policies(self, rules: Rules, labels: Labels, new: Sequence[Policy]) -> tuple[Rules, Labels]:
        """As if these policies were stored: each takes the place of those with its id or its scope."""
        stored, tiers, names = rules.policies, rules.tiers, dict(labels.policies)
        ids = dict(self._connection.execute(sa.select(policies.c.policy_id, policies.c.policy_key)).tuples().all())
        for key, policy in enumerate(new, start=_UNSTORED):
            with within(f"policies.{key - _UNSTORED}"):
                row = policy_row(policy, self._rules.scope_keys(policy))
            record = _record(row | {"policy_key": key, "name_hash": key}, POLICIES)
            same_scope = np.all([stored[field] == record[field] for field in _SCOPE_FIELDS], axis=0)
            stored = stored[~same_scope & (stored["policy_key"] != ids.get(policy.policy_id, ABSENT))]
            stored = np.append(stored, record)
            tiers = np.append(tiers, np.array([(key, *tier) for tier in row["tiers"]], TIERS))
            names[key] = Label(policy.policy_id, policy.name)
        return rules._replace(policies=stored, tiers=tiers), labels._replace(policies=names)

    def with_promotions(self, rules: Rules, labels: Labels, new: Sequence[Promotion]) -> tuple[Rules, Labels]:
        """As if these promotions were stored: each takes the place of the one with its id."""
        stored, names = rules.promotions, dict(labels.promotions)
        for key, promotion in enumerate(new, start=_UNSTORED):
            find = sa.select(promotions.c.promotion_key).where(promotions.c.promotion_id == promotion.promotion_id)
            replaced = self._connection.execute(find).scalar_one_or_none()
            with within(f"promotions.{key - _UNSTORED}"):
                row = promotion_row(promotion, self._rules.scope_keys(promotion))
            record = _record(row | {"promotion_key": key, "name_hash": key}, PROMOTIONS)
            stored = np.append(stored[stored["promotion_key"] != (replaced or ABSENT)], record)
            names[key] = Label(promotion.promotion_id, promotion.name)
        return rules._replace(promotions=stored), labels._replace(promotions=names)


def _record(row: dict[str, Any], dtype: np.dtype[Any]) -> Table:
    """A row of `policies` or `promotions` as one record of the formula's columns."""
    record = np.zeros(1, dtype)
    where = row["currency"]
    values = row | {
        "currency_number": currency(where).number if where and row["location_key"] is None else None,
        "starts_at": _ms(row.get("starts_at"), 0),
        "ends_at": _ms(row.get("ends_at"), NEVER),
    }
    for name in dtype.names or ():
        record[name] = ABSENT if values[name] is None else values[name]
    return record


def _ms(instant: datetime | None, otherwise: int) -> int:
    return otherwise if instant is None else int(instant.timestamp() * 1000)
