"""Policies and promotions as people write them: decimals, percents and public ids.

The same models decode the API's bodies, the events' data and the rows of an import.
"""

from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import WithJsonSchema

from app.domain.money import currency, to_basis_points
from app.errors import InvalidInput

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _priced_in(code: str) -> str:
    try:
        return currency(code).code
    except InvalidInput as error:
        raise ValueError(str(error)) from None


CurrencyCode = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$"), AfterValidator(_priced_in)]
Money = Annotated[
    Decimal,
    Field(ge=0, le=10**10, allow_inf_nan=False),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 10**10}),
]

Percent = Annotated[
    Decimal,
    Field(ge=0, le=100, decimal_places=2, allow_inf_nan=False),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100}),
]
Rate = Annotated[
    Decimal,
    Field(ge=0, le=400, decimal_places=2, allow_inf_nan=False),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 400}),
]


def _storable(instant: datetime) -> datetime:
    if not datetime(1970, 1, 1, tzinfo=UTC) <= instant < datetime(9999, 1, 1, tzinfo=UTC):
        raise ValueError("an instant must lie between 1970 and 9998 (UTC)")
    return instant


Instant = Annotated[AwareDatetime, AfterValidator(_storable)]


class PolicyKindName(StrEnum):
    LIST = "list"
    MARKET = "market"
    COMPETITOR = "competitor"
    COST_PLUS = "cost_plus"
    MARKDOWN = "markdown"


class PromotionKindName(StrEnum):
    PERCENT = "percent"
    AMOUNT = "amount"
    FIXED = "fixed"


class SegmentName(StrEnum):
    EVERYONE = "everyone"
    MEMBER = "member"


class RoundingScope(StrEnum):
    UNIT = "unit"
    LINE = "line"


class Scope(BaseModel):
    """What a rule is about: at most one of product, category, department, and at most one of location and
    currency. Nothing set means everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    product_id: Id | None = None
    category: Name | None = None
    department: Name | None = None
    location: Id | None = None
    currency: CurrencyCode | None = Field(None, description="Only locations with this ISO 4217 currency.")

    @model_validator(mode="after")
    def _scope_is_one(self) -> Self:
        if sum(s is not None for s in (self.product_id, self.category, self.department)) > 1:
            raise ValueError("name at most one of product_id, category and department")
        if self.location is not None and self.currency is not None:
            raise ValueError("name at most one of location and currency: a location has its own currency")
        return self

    def _needs_currency(self, *amounts: Decimal | None) -> None:
        if any(amounts) and self.location is None and self.currency is None:
            raise ValueError("amounts of money need a location or a currency")


class QuantityTier(BaseModel):
    """From `min_quantity` units on, `percent` off every unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_quantity: int = Field(ge=2, le=1_000_000)
    percent: Percent


class Policy(Scope):
    """How a scope of products is priced. The most specific policy of a row prices it: product before
    category before department before all; within one of these location before currency before all."""

    policy_id: Id
    name: Name
    kind: PolicyKindName
    rate_percent: Rate = Field(
        Decimal(0),
        description="market: weight of the demand index; competitor: undercut; cost_plus: markup on cost; "
        "markdown: discount.",
    )
    undercut_amount: Money = Field(Decimal(0), description="competitor: taken off after rate_percent.")
    stock_threshold: int = Field(0, ge=0, le=10**12, description="markdown: applies from this stock on.")
    min_margin_percent: Percent | None = Field(None, lt=100, description="Least margin, as a share of the price.")
    floor: Money | None = Field(None, description="The price never falls below this, whatever else applies.")
    ceiling: Money | None = None
    max_change_percent: Rate | None = Field(None, description="Most change from the list price, either way.")
    rounding_increment: Money = Field(Decimal(0), description="Round to multiples of this, such as 1.00 ...")
    rounding_ending: Money = Field(Decimal(0), description="... plus this, such as 0.99. Below the increment.")
    rounding_scope: RoundingScope = RoundingScope.UNIT
    tiers: tuple[QuantityTier, ...] = Field((), max_length=20)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._needs_currency(self.undercut_amount, self.floor, self.ceiling, self.rounding_increment)
        if self.rounding_ending and self.rounding_ending >= self.rounding_increment:
            raise ValueError("rounding_ending must be below rounding_increment")
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError("floor must not be above ceiling")
        if self.kind in (PolicyKindName.COMPETITOR, PolicyKindName.MARKDOWN) and self.rate_percent > 100:
            raise ValueError("rate_percent must be at most 100 here")
        for lower, higher in zip(self.tiers, self.tiers[1:], strict=False):
            if lower.min_quantity >= higher.min_quantity or lower.percent > higher.percent:
                raise ValueError("tiers must rise in min_quantity and must not fall in percent")
        return self


class Promotion(Scope):
    """A discount with a scope, a window and an audience. Stackable ones apply in order of priority, lowest
    number first; of the exclusive ones the best applies alone, where it beats the stack."""

    promotion_id: Id
    name: Name
    kind: PromotionKindName
    value: Money = Field(description="percent: percent off; amount: money off; fixed: the price itself.")
    segment: SegmentName = SegmentName.EVERYONE
    stackable: bool = True
    priority: int = Field(100, ge=0, le=1_000_000)
    starts_at: Instant | None = None
    ends_at: Instant | None = Field(None, description="The first instant at which it no longer holds.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind is PromotionKindName.PERCENT:
            if not _is_percent(self.value):
                raise ValueError("a percent is at most 100, with at most two decimals")
        else:
            self._needs_currency(self.value)
        if self.starts_at is not None and self.ends_at is not None and self.starts_at >= self.ends_at:
            raise ValueError("ends_at must be after starts_at")
        return self


def _is_percent(value: Decimal) -> bool:
    try:
        return to_basis_points(value) <= to_basis_points(Decimal(100))
    except InvalidInput:
        return False
