"""Policies and promotions: as columns for the formula, and one by one for people."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database import read_columns
from app.adapters.schema import categories, departments, locations, policies, products, promotions, rule_removals
from app.domain.columns import (
    ABSENT,
    NEVER,
    POLICIES,
    PROMOTIONS,
    TIERS,
    PolicyKind,
    PromotionKind,
    Rules,
    Segment,
    Table,
)
from app.domain.money import currency, to_basis_points, to_decimal, to_minor, to_percent
from app.domain.promotions import NEAR_MS
from app.domain.rows import RowScope
from app.domain.rules import (
    Policy,
    PolicyKindName,
    Promotion,
    PromotionKindName,
    QuantityTier,
    RoundingScope,
    Scope,
    SegmentName,
)
from app.domain.sheet import Label, Labels
from app.errors import AlreadyExists, InvalidInput, NotFound, within

_CURRENCY_NUMBERS = "LEFT JOIN (SELECT DISTINCT currency, currency_number FROM locations) c USING (currency)"

# A rule in a currency that no location has can match nothing, yet must not look unrestricted: it gets 0.
_SCOPE = (
    "coalesce(product_key, -1)::int8, coalesce(category_key, -1)::int8, coalesce(department_key, -1)::int8,"
    " coalesce(location_key, -1)::int8,"
    " CASE WHEN location_key IS NOT NULL OR currency IS NULL THEN -1 ELSE coalesce(currency_number, 0) END::int8"
)

# For the narrow rules of a batch: those of its products, at its locations.
_CONCERNS_FEW = (
    "NOT removed AND (product_key IS NULL OR product_key = ANY(%(products)s::int4[]))"
    " AND (location_key IS NULL OR location_key = ANY(%(locations)s::int4[]))"
)

# Where a batch has many of the products from its first to its last one, a range costs a third of a list.
_MANY = 200
_CONCERNS_RANGE = "NOT removed AND (product_key IS NULL OR product_key BETWEEN %(first)s AND %(last)s)"

_POLICIES = f"""
    SELECT policy_key::int8, {_SCOPE}, kind::int8, rate_bp::int8, amount, threshold,
           coalesce(min_margin_bp, -1)::int8, coalesce(floor, -1), coalesce(ceiling, -1),
           coalesce(max_change_bp, -1)::int8, rounding_increment, rounding_ending,
           line_rounding::int4::int8, hashtextextended(name, 0)
    FROM policies {_CURRENCY_NUMBERS} WHERE {{concerns}} ORDER BY policy_key
"""

_TIERS = """
    SELECT policy_key::int8, (tier ->> 0)::int8, (tier ->> 1)::int8
    FROM policies, jsonb_array_elements(tiers) tier WHERE {concerns} ORDER BY 1, 2
"""

_PROMOTIONS = f"""
    SELECT promotion_key::int8, {_SCOPE}, kind::int8, value, segment::int8, stackable::int4::int8,
           priority::int8, coalesce((extract(epoch FROM starts_at) * 1000)::int8, 0),
           coalesce((extract(epoch FROM ends_at) * 1000)::int8, {NEVER}), hashtextextended(name, 0)
    FROM promotions {_CURRENCY_NUMBERS}
    WHERE {{concerns}} AND (ends_at IS NULL OR ends_at > to_timestamp(%(since)s / 1000.0))
"""


_SCOPE_FIELDS = ("product_key", "category_key", "department_key", "location_key", "currency_number")

_NOTHING = 0
"""A key that no category or department has."""

_NEW_ROWS = 0x70726963
"""Number of the advisory lock between new rows and rules; any number that nobody else uses."""

_UNSTORED = 2**40
"""Keys from here on are of rules that are only supposed; no stored one comes near."""


class RuleTables:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def hold_rules(self) -> None:
        """For whoever prices rows for the first time: until this transaction ends, no rule's rows are looked up.
        A rule that is committed meanwhile would neither be seen here nor find these rows."""
        self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_NEW_ROWS)))

    def hold_new_rows(self) -> None:
        """For whoever looks up a rule's rows: waits for those that are being priced for the first time, and lets no
        more begin until this transaction ends."""
        self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_NEW_ROWS)))

    def rules(self, keys: Table, as_of: int) -> Rules:
        """Every rule that may concern these rows (their `product_key` and `location_key`) at `as_of` (ms)."""
        products = np.unique(keys["product_key"])
        parameters: dict[str, Any] = {"since": as_of - NEAR_MS}
        if len(products) > _MANY and len(products) * 4 > products[-1] - products[0]:
            concerns = _CONCERNS_RANGE
            parameters |= {"first": int(products[0]), "last": int(products[-1])}
        else:
            concerns = _CONCERNS_FEW
            parameters |= {"products": products, "locations": np.unique(keys["location_key"])}

        def read(select: str, dtype: np.dtype[Any]) -> Table:
            return read_columns(self._connection, select.format(concerns=concerns), parameters, dtype)

        return Rules(read(_POLICIES, POLICIES), read(_TIERS, TIERS), read(_PROMOTIONS, PROMOTIONS))

    def save_policy(self, policy: Policy, position: int, *, new: bool = False, by_hand: bool = False) -> bool:
        """Create or replace, unless something newer than `position` was said of it; false then. What is done by hand is
        always newer than what is stored: its position may be higher then.

        Raises `InvalidInput` where it names what is not there or another policy has the same scope, and
        `AlreadyExists` where it is to be `new` and is not.
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
                raise InvalidInput("another policy has the same scope, location and currency") from None
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

    def with_policies(self, rules: Rules, labels: Labels, new: Sequence[Policy]) -> tuple[Rules, Labels]:
        """As if these policies were stored: each takes the place of those with its id or its scope."""
        stored, tiers, names = rules.policies, rules.tiers, dict(labels.policies)
        ids = dict(self._connection.execute(sa.select(policies.c.policy_id, policies.c.policy_key)).tuples().all())
        for key, policy in enumerate(new, start=_UNSTORED):
            with within(f"policies.{key - _UNSTORED}"):
                row = policy_row(policy, self.scope_keys(policy))
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
                row = promotion_row(promotion, self.scope_keys(promotion))
            record = _record(row | {"promotion_key": key, "name_hash": key}, PROMOTIONS)
            stored = np.append(stored[stored["promotion_key"] != (replaced or ABSENT)], record)
            names[key] = Label(promotion.promotion_id, promotion.name)
        return rules._replace(promotions=stored), labels._replace(promotions=names)

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


def _decimals(keys: dict[str, Any]) -> int:
    return currency(keys["currency"]).decimals if keys["currency"] else 0


def policy_row(policy: Policy, keys: dict[str, Any]) -> dict[str, Any]:
    """The policy as a row of `policies`, given its `scope_keys`. Raises `InvalidInput` for an amount finer
    than the currency."""
    decimals = _decimals(keys)

    def minor(field: str) -> int | None:
        amount: Decimal | None = getattr(policy, field)
        with within(field):
            return None if amount is None else to_minor(amount, decimals)

    def points(percent: Decimal | None) -> int | None:
        return None if percent is None else to_basis_points(percent)

    return keys | {
        "name": policy.name,
        "kind": PolicyKind[policy.kind.name].value,
        "rate_bp": points(policy.rate_percent),
        "amount": minor("undercut_amount"),
        "threshold": policy.stock_threshold,
        "min_margin_bp": points(policy.min_margin_percent),
        "floor": minor("floor"),
        "ceiling": minor("ceiling"),
        "max_change_bp": points(policy.max_change_percent),
        "rounding_increment": minor("rounding_increment"),
        "rounding_ending": minor("rounding_ending"),
        "line_rounding": policy.rounding_scope is RoundingScope.LINE,
        "tiers": [[tier.min_quantity, to_basis_points(tier.percent)] for tier in policy.tiers],
    }


def promotion_row(promotion: Promotion, keys: dict[str, Any]) -> dict[str, Any]:
    """The promotion as a row of `promotions`, given its `scope_keys`. Raises `InvalidInput`."""
    percent = promotion.kind is PromotionKindName.PERCENT
    with within("value"):
        value = to_basis_points(promotion.value) if percent else to_minor(promotion.value, _decimals(keys))
    return keys | {
        "name": promotion.name,
        "kind": PromotionKind[promotion.kind.name].value,
        "value": value,
        "segment": Segment[promotion.segment.name].value,
        "stackable": promotion.stackable,
        "priority": promotion.priority,
        "starts_at": _whole_ms(promotion.starts_at),
        "ends_at": _whole_ms(promotion.ends_at),
    }


def _whole_ms(instant: datetime | None) -> datetime | None:
    return instant and instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def _scope_of(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        "product_id": row.scope_product,
        "category": row.scope_category,
        "department": row.scope_department,
        "location": row.scope_location,
        "currency": None if row.scope_location else row.currency,
    }


def row_to_policy(row: sa.Row[Any]) -> Policy:
    decimals = currency(row.currency).decimals if row.currency else 0

    def amount(minor: int | None) -> Decimal | None:
        return None if minor is None else to_decimal(minor, decimals)

    return Policy(
        policy_id=row.policy_id,
        name=row.name,
        **_scope_of(row),
        kind=PolicyKindName[PolicyKind(row.kind).name],
        rate_percent=to_percent(row.rate_bp),
        undercut_amount=to_decimal(row.amount, decimals),
        stock_threshold=row.threshold,
        min_margin_percent=None if row.min_margin_bp is None else to_percent(row.min_margin_bp),
        floor=amount(row.floor),
        ceiling=amount(row.ceiling),
        max_change_percent=None if row.max_change_bp is None else to_percent(row.max_change_bp),
        rounding_increment=to_decimal(row.rounding_increment, decimals),
        rounding_ending=to_decimal(row.rounding_ending, decimals),
        rounding_scope=RoundingScope.LINE if row.line_rounding else RoundingScope.UNIT,
        tiers=tuple(QuantityTier(min_quantity=q, percent=to_percent(bp)) for q, bp in row.tiers),
    )


def row_to_promotion(row: sa.Row[Any]) -> Promotion:
    kind = PromotionKind(row.kind)
    decimals = currency(row.currency).decimals if row.currency else 0
    return Promotion(
        promotion_id=row.promotion_id,
        name=row.name,
        **_scope_of(row),
        kind=PromotionKindName[kind.name],
        value=to_percent(row.value) if kind is PromotionKind.PERCENT else to_decimal(row.value, decimals),
        segment=SegmentName[Segment(row.segment).name],
        stackable=row.stackable,
        priority=row.priority,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
    )
