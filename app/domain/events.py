"""The one envelope of all events: CloudEvents 1.0 attribute names, and what `data` holds per type."""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from app.domain.rules import CurrencyCode, Id, Money, Name, Policy, Promotion, Scope
from app.errors import MalformedEvent

BARE_RECALCULATE = "Recalculate_Triggered_v1"
"""The whole message that, on the channel, stands for "recalculate everything"."""

EVERYTHING = "*"


class EventType(StrEnum):
    LIST_PRICE_CHANGED = "list_price.changed"
    COST_CHANGED = "cost.changed"
    COMPETITOR_PRICE_CHANGED = "competitor_price.changed"
    DEMAND_CHANGED = "demand.changed"
    STOCK_CHANGED = "stock.changed"
    PROMOTION_CHANGED = "promotion.changed"
    POLICY_CHANGED = "policy.changed"
    RECALCULATE = "recalculate"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MoneyData(_Data):
    """A new list price, cost or competitor's price. `currency` narrows `location: *` to its locations."""

    amount: Money
    currency: CurrencyCode | None = None


class DemandData(_Data):
    """The demand index: 1 is ordinary demand, 1.2 a fifth more."""

    index: Annotated[
        Decimal,
        Field(ge=0, le=10, decimal_places=4, allow_inf_nan=False),
        WithJsonSchema({"type": "number", "minimum": 0, "maximum": 10}),
    ]


class StockData(_Data):
    quantity: int = Field(ge=0, le=10**12)


class _RuleData(_Data):
    removed: Id | None = Field(None, description="The id of a rule that no longer is.")
    scopes: tuple[Scope, ...] = Field((), max_length=10, description="Scopes to reprice, where the rule is stored.")


class PromotionData(_RuleData):
    """The promotion's new definition, or what became of one; with neither, the subject is repriced."""

    promotion: Promotion | None = None


class PolicyData(_RuleData):
    """The policy's new definition, or what became of one; with neither, the subject is repriced."""

    policy: Policy | None = None


class RecalculateData(_Data):
    pass


Data = MoneyData | DemandData | StockData | PromotionData | PolicyData | RecalculateData

_DATA: dict[EventType, type[_Data]] = {
    EventType.LIST_PRICE_CHANGED: MoneyData,
    EventType.COST_CHANGED: MoneyData,
    EventType.COMPETITOR_PRICE_CHANGED: MoneyData,
    EventType.DEMAND_CHANGED: DemandData,
    EventType.STOCK_CHANGED: StockData,
    EventType.PROMOTION_CHANGED: PromotionData,
    EventType.POLICY_CHANGED: PolicyData,
    EventType.RECALCULATE: RecalculateData,
}


class Event(BaseModel):
    """`subject` is a product's id, a category's name, or `*`; `location` a location's id, or `*`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    type: EventType
    source: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "/api"
    subject: Name = EVERYTHING
    location: Id | Annotated[str, StringConstraints(pattern=r"^\*$")] = EVERYTHING
    time: AwareDatetime | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    traceparent: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")] | None
    ) = None

    @model_validator(mode="after")
    def _data_fits_type(self) -> Self:
        self.typed_data()
        return self

    def typed_data(self) -> _Data:
        """`data` as what its type says it is. Raises `ValueError`."""
        try:
            return _DATA[self.type].model_validate(self.data)
        except ValidationError as error:
            raise ValueError("; ".join(_problems(error, "data"))) from None


def decode_event(message: bytes | str) -> Event:
    """An envelope from JSON. Raises `MalformedEvent` with every field that is wrong."""
    try:
        return Event.model_validate_json(message)
    except ValidationError as error:
        raise MalformedEvent("; ".join(_problems(error))) from None


def encode_event(event: Event) -> bytes:
    return event.model_dump_json(exclude_none=True).encode()


def _problems(error: ValidationError, *prefix: str) -> list[str]:
    return [f"{'.'.join(map(str, (*prefix, *e['loc'])))}: {e['msg']}" for e in error.errors()]
