"""Policies and promotions as rows of their tables, and back."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from app.domain.columns import PolicyKind, PromotionKind, Segment
from app.domain.money import currency, to_basis_points, to_decimal, to_minor, to_percent
from app.domain.rules import (
    Policy,
    PolicyKindName,
    Promotion,
    PromotionKindName,
    QuantityTier,
    RoundingScope,
    SegmentName,
)
from app.errors import within


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
