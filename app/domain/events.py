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
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from app.domain.rules import ID_PATTERN, CurrencyCode, Id, Money, Name, Policy, Promotion, Scope
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


_WIDE_BY_DEFAULT = frozenset({EventType.RECALCULATE, EventType.PROMOTION_CHANGED, EventType.POLICY_CHANGED})


class Envelope(BaseModel):
    """`subject` is a product's id, a category's name, or `*`; `location` a location's id, or `*`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id | None = None
    type: EventType
    source: Name = "/api"
    subject: Name = Field(EVERYTHING, description="A product's id, a category's name, or * for everything.")
    location: Annotated[str, StringConstraints(pattern=rf"^\*$|{ID_PATTERN}")] = Field(
        EVERYTHING, description="A store or a region, or * for all."
    )
    time: AwareDatetime | None = None
    data: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    traceparent: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")] | None
    ) = None

    @field_validator("data")
    @classmethod
    def _fits_type(cls, data: dict[str, Any], fields: ValidationInfo) -> dict[str, Any]:
        if "type" in fields.data:
            _DATA[fields.data["type"]].model_validate(data)
        return data

    @model_validator(mode="after")
    def _says_what_it_is_about(self) -> Self:
        """A signal of everything everywhere has to be meant, not forgotten."""
        if self.type not in _WIDE_BY_DEFAULT and not {"subject", "location"} <= self.model_fields_set:
            raise ValueError(f"{self.type} needs a subject and a location; * means all")
        return self

    def typed_data(self) -> _Data:
        """`data` as what its type says it is."""
        return _DATA[self.type].model_validate(self.data)


class Event(Envelope):
    """An accepted event. `streamid` is its first place in the stream, where it has been put there again."""

    id: Id
    streamid: Annotated[str, StringConstraints(pattern=r"^\d{1,20}-\d{1,20}$")] | None = None


def decode_event(message: bytes | str) -> Event:
    """An envelope from JSON. Raises `MalformedEvent` with every field that is wrong."""
    try:
        return Event.model_validate_json(message)
    except ValidationError as error:
        raise MalformedEvent("; ".join(f"{path or 'event'}: {message}" for path, message in problems(error))) from None


def encode_event(event: Envelope) -> bytes:
    return event.model_dump_json(exclude_none=True).encode()


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """What is wrong with an event, as (path such as data.amount, message)."""
    return [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False, include_input=False)]
