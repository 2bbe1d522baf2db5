"""Policies and promotions: as columns for the formula, and one by one for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database import read_together, run
from app.adapters.rule_rows import policy_row, promotion_row, row_to_policy, row_to_promotion
from app.adapters.schema import categories, departments, locations, policies, products, promotions, rule_removals
from app.domain.columns import NEVER, POLICIES, PROMOTIONS, TIERS, Rules, Table
from app.domain.promotions import NEAR_MS
from app.domain.rows import RowScope
from app.domain.rules import Policy, Promotion, Scope
from app.errors import AlreadyExists, InvalidInput, NotFound, ScopeTaken

# A rule in a currency that no location has can match nothing, yet must not look unrestricted: it gets 0.
_SCOPE = (
    "coalesce(product_key, -1), coalesce(category_key, -1), coalesce(department_key, -1), coalesce(location_key, -1),"
    " CASE WHEN location_key IS NOT NULL OR currency IS NULL THEN -1 ELSE coalesce(currency_number, 0) END"
)

# For the narrow rules of a batch: those of its products, at its locations.
_CONCERNS_FEW = (
    "NOT removed AND (product_key IS NULL OR product_key = ANY(%(of_products)s::int4[]))"
    " AND (location_key IS NULL OR location_key = ANY(%(at_locations)s::int4[]))"
)

# Where a batch has many of the products from its first to its last one, a range costs a third of a list.
_MANY = 200
_CONCERNS_RANGE = "NOT removed AND (product_key IS NULL OR product_key BETWEEN %(first)s AND %(last)s)"

_CONCERNING = f"""
WITH numbers AS (SELECT DISTINCT currency, currency_number FROM locations),
their_policies AS (SELECT * FROM policies WHERE {{concerns}}),
their_promotions AS (
    SELECT * FROM promotions WHERE {{concerns}} AND (ends_at IS NULL
        OR ends_at > coalesce(to_timestamp(%(as_of)s::int8 / 1000.0), now()) - interval '{NEAR_MS} milliseconds')
)"""
_CONCERNING_FEW, _CONCERNING_RANGE = (_CONCERNING.format(concerns=c) for c in (_CONCERNS_FEW, _CONCERNS_RANGE))

_POLICIES = f"""
SELECT policy_key, {_SCOPE}, kind, rate_bp, amount, threshold, coalesce(min_margin_bp, -1), coalesce(floor, -1),
    coalesce(ceiling, -1), coalesce(max_change_bp, -1), rounding_increment, rounding_ending, line_rounding::int4,
    hashtextextended(name, 0)
FROM their_policies LEFT JOIN numbers USING (currency) ORDER BY policy_key"""

_TIERS = """
SELECT policy_key, (tier ->> 0)::int8, (tier ->> 1)::int8
FROM their_policies, jsonb_array_elements(tiers) tier ORDER BY 1, 2"""

_PROMOTIONS = f"""
SELECT promotion_key, {_SCOPE}, kind, value, segment, stackable::int4, priority,
    coalesce((extract(epoch FROM starts_at) * 1000)::int8, 0),
    coalesce((extract(epoch FROM ends_at) * 1000)::int8, {NEVER}), hashtextextended(name, 0)
FROM their_promotions LEFT JOIN numbers USING (currency)"""

RULES = ((_POLICIES, POLICIES), (_TIERS, TIERS), (_PROMOTIONS, PROMOTIONS))
"""Queries for the fields of `Rules`, in their order, after what `concerning` gives."""

RULE_NAMES = (
    ("SELECT policy_key, policy_id, name FROM their_policies", ("policy_key", "policy_id", "name")),
    ("SELECT promotion_key, promotion_id, name FROM their_promotions", ("promotion_key", "promotion_id", "name")),
)
"""For the names of the same ones."""

_NOTHING = 0
"""A key that no category or department has."""

_NEW_ROWS = 0x70726963
"""Number of the advisory lock between new rows and rules; any number that nobody else uses."""


def concerning(keys: Table, as_of: int | None) -> tuple[str, dict[str, Any]]:
    """What `RULES` and `RULE_NAMES` need before them, and its parameters, for the rules that may concern these rows
    (their `product_key` and `location_key`) at `as_of` (ms); without a time, at any since the transaction began."""
    products = np.unique(keys["product_key"])
    if len(products) > _MANY and len(products) * 4 > products[-1] - products[0]:
        return _CONCERNING_RANGE, {"as_of": as_of, "first": int(products[0]), "last": int(products[-1])}
    return _CONCERNING_FEW, {"as_of": as_of, "of_products": products, "at_locations": np.unique(keys["location_key"])}


class RuleTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def hold_rules(self) -> None:
        """For whoever prices rows for the first time: until this transaction ends, no rule's rows are looked up.
        A rule that is committed meanwhile would neither be seen here nor find these rows."""
        run(self._connection, "SELECT pg_advisory_xact_lock_shared(%(number)s)", {"number": _NEW_ROWS})

    def hold_new_rows(self) -> None:
        """For whoever looks up a rule's rows: waits for those that are being priced for the first time, and lets no
        more begin until this transaction ends."""
        run(self._connection, "SELECT pg_advisory_xact_lock(%(number)s)", {"number": _NEW_ROWS})

    def rules(self, keys: Table, as_of: int) -> Rules:
        """Every rule that may concern these rows (their `product_key` and `location_key`) at `as_of` (ms)."""
        common, parameters = concerning(keys, as_of)
        return Rules(*read_together(self._connection, RULES, (), parameters, common)[0])

    def save_policy(self, policy: Policy, position: int, *, new: bool = False, by_hand: bool = False) -> bool:
        """Create or replace, unless something newer than `position` was said of it; false then. What is done by hand is
        always newer than what is stored: its position may be higher then.

        Raises `InvalidInput` where it names what is not there, `ScopeTaken` where another policy has the same scope,
        and `AlreadyExists` where it is to be `new` and is not.
        """
        row = policy_row(policy, self.scope_keys(policy, create=True))
        return self._save(policies, "policy_id", policy.policy_id, row, position, new, by_hand)

    def save_promotion(self, promotion: Promotion, position: int, *, new: bool = False, by_hand: bool = False) -> bool:
        """As `save_policy`; any number of promotions may share a scope."""
        row = promotion_row(promotion, self.scope_keys(promotion, create=True))
        return self._save(promotions, "promotion_id", promotion.promotion_id, row, position, new, by_hand)

    def remove_policy(self, policy_id: str, position: int, *, by_hand: bool = False) -> Policy | None:
        """Remove it, unless something newer was said; the removed one, or None where there is none."""
        removed: Policy | None = self._remove(policies, "policy_id", policy_id, position, by_hand, self.policy)
        return removed

    def remove_promotion(self, promotion_id: str, position: int, *, by_hand: bool = False) -> Promotion | None:
        removed: Promotion | None = self._remove(
            promotions, "promotion_id", promotion_id, position, by_hand, self.promotion
        )
        return removed

    def policy(self, policy_id: str) -> Policy:
        """Raises `NotFound`."""
        return row_to_policy(self._one(policies, "policy_id", policy_id))

    def promotion(self, promotion_id: str) -> Promotion:
        """Raises `NotFound`."""
        return row_to_promotion(self._one(promotions, "promotion_id", promotion_id))

    def policies_after(self, last: str, limit: int) -> list[Policy]:
        """The next ones in order of `policy_id`."""
        return [row_to_policy(row) for row in self._page(policies, "policy_id", last, limit)]

    def promotions_after(self, last: str, limit: int) -> list[Promotion]:
        return [row_to_promotion(row) for row in self._page(promotions, "promotion_id", last, limit)]

    def _save(
        self,
        table: sa.Table,
        id_column: str,
        rule_id: str,
        row: dict[str, Any],
        position: int,
        new: bool,
        by_hand: bool,
    ) -> bool:
        stored, said = self._said(table, id_column, rule_id)
        if stored is not None and new and not stored.removed:
            raise AlreadyExists(f"{id_column} {rule_id!r} exists; PUT replaces it")
        if by_hand:
            position = max(position, said + 1)
        if said > position:
            return False
        row = row | {"position": position, "removed": False}
        try:
            with self._connection.begin_nested():
                if stored is None:
                    self._connection.execute(table.insert().values({id_column: rule_id} | row))
                else:
                    self._connection.execute(table.update().where(table.c[id_column] == rule_id).values(row))
        except sa.exc.IntegrityError as error:
            if "one_per_scope" in str(error.orig):
                raise ScopeTaken("another policy has the same scope, location and currency") from None
            raise AlreadyExists(f"{id_column} {rule_id!r} was created at the same time") from None
        return True

    def _remove(self, table: sa.Table, id_column: str, rule_id: str, position: int, by_hand: bool, read: Any) -> Any:
        stored, said = self._said(table, id_column, rule_id)
        if by_hand:
            position = max(position, said + 1)
        if stored is None or stored.removed:
            # Its creation may still be on its way; this keeps it from coming back.
            self._note_removal(f"{table.name}/{rule_id}", position)
            return None
        if said > position:
            return None
        rule = read(rule_id)
        change = table.update().where(table.c[id_column] == rule_id)
        self._connection.execute(change.values(removed=True, position=position))
        return rule

    def _note_removal(self, rule: str, position: int) -> None:
        noted = insert(rule_removals).values(rule=rule, position=position)
        newest = sa.func.greatest(rule_removals.c.position, noted.excluded.position)
        self._connection.execute(noted.on_conflict_do_update(index_elements=["rule"], set_={"position": newest}))

    def _said(self, table: sa.Table, id_column: str, rule_id: str) -> tuple[sa.Row[Any, Any] | None, int]:
        """The rule's row, held until the transaction ends, if it has one; and the position of what was said of it last,
        which may be a removal of what was not there."""
        select = sa.select(table.c.position, table.c.removed).where(table.c[id_column] == rule_id)
        stored = self._connection.execute(select.with_for_update()).one_or_none()
        find = sa.select(rule_removals.c.position).where(rule_removals.c.rule == f"{table.name}/{rule_id}")
        removal: int = self._connection.execute(find).scalar_one_or_none() or 0
        return (None, removal) if stored is None else (stored, max(stored.position, removal))

    def _one(self, table: sa.Table, id_column: str, rule_id: str) -> sa.Row[Any]:
        found = self._connection.execute(_with_names(table).where(table.c[id_column] == rule_id)).one_or_none()
        if found is None:
            raise NotFound(f"there is no {id_column.removesuffix('_id')} {rule_id!r}")
        return found

    def _page(self, table: sa.Table, id_column: str, last: str, limit: int) -> Sequence[sa.Row[Any]]:
        ids = table.c[id_column]
        return self._connection.execute(_with_names(table).where(ids > last).order_by(ids).limit(limit)).all()

    def scope_keys(self, scope: Scope, *, create: bool = False) -> dict[str, Any]:
        """The columns that `schema._scope` declares. Raises `InvalidInput` where a product or location is unknown.
        A category or department that no product has yet is created on demand; else its key is one of nothing."""
        location = None
        if scope.location is not None:
            select = sa.select(locations.c.location_key, locations.c.currency)
            location = self._connection.execute(select.where(locations.c.location == scope.location)).one_or_none()
            if location is None:
                raise InvalidInput(f"there is no location {scope.location!r}", "location")
        product_key = None
        if scope.product_id is not None:
            select_key = sa.select(products.c.product_key).where(products.c.product_id == scope.product_id)
            product_key = self._connection.execute(select_key).scalar_one_or_none()
            if product_key is None:
                raise InvalidInput(f"there is no product {scope.product_id!r}", "product_id")
        return {
            "product_key": product_key,
            "category_key": self._named_key(categories, scope.category, create),
            "department_key": self._named_key(departments, scope.department, create),
            "location_key": location.location_key if location else None,
            "currency": location.currency if location else scope.currency,
        }

    def row_scope(self, scope: Scope) -> RowScope:
        """The rows that a rule's scope means. Raises `InvalidInput` where it names what is not there."""
        return RowScope(**self.scope_keys(scope))

    def _named_key(self, table: sa.Table, name: str | None, create: bool) -> int | None:
        if name is None:
            return None
        key = next(iter(table.primary_key))
        find = sa.select(key).where(table.c.name == name)
        found: int | None = self._connection.execute(find).scalar_one_or_none()
        if found is None and create:
            self._connection.execute(insert(table).values(name=name).on_conflict_do_nothing())
            found = self._connection.execute(find).scalar_one()
        return _NOTHING if found is None else found


def _with_names(table: sa.Table) -> sa.Select[Any]:
    joined = (
        table.outerjoin(products, products.c.product_key == table.c.product_key)
        .outerjoin(categories, categories.c.category_key == table.c.category_key)
        .outerjoin(departments, departments.c.department_key == table.c.department_key)
        .outerjoin(locations, locations.c.location_key == table.c.location_key)
    )
    return (
        sa.select(
            table,
            products.c.product_id.label("scope_product"),
            categories.c.name.label("scope_category"),
            departments.c.name.label("scope_department"),
            locations.c.location.label("scope_location"),
        )
        .select_from(joined)
        .where(~table.c.removed)
    )
