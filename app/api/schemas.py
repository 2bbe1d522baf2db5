"""What requests and answers look like: the published contract."""

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.problems import Problem
from app.domain.api_key import LONGEST_OVERLAP_S, ApiKey, Consumer
from app.domain.columns import Segment
from app.domain.events import Envelope, EventType
from app.domain.quote import MAX_ITEMS, MAX_QUANTITY
from app.domain.rules import Id, Money, Policy, Promotion
from app.domain.task import Task
from app.domain.usage import By, Per
from app.services.quoting import QuoteRequest

Amount = Annotated[float, Field(description="Money, with exactly the currency's decimals.")]
LetterId = Annotated[str, Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")]
Quantity = Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


def _in_calendar(instant: datetime | None) -> datetime | None:
    if instant is not None and not 1970 <= instant.year < 9999:
        raise ValueError("an instant must lie between 1970 and 9998")
    return instant


def _written_out(instant: str) -> str:
    """pydantic takes a number for seconds since 1970."""
    if not re.match(r"[0-9]{4}-", instant):
        raise ValueError("an instant is written as in 2026-01-31T12:00:00Z")
    return instant


Instant = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_calendar)]
"""An instant in a query."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PriceRequest(_Request):
    """Who asks for how many of what, where."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"product_id": "P-100", "user_location": "NY", "is_prime_member": True}]},
    )

    product_id: Id
    user_location: Id
    is_prime_member: bool = False
    quantity: Quantity = 1

    def quote_request(self) -> QuoteRequest:
        return QuoteRequest(self.product_id, self.user_location, segment(self.is_prime_member), self.quantity)


def segment(is_prime_member: bool) -> Segment:
    return Segment.MEMBER if is_prime_member else Segment.EVERYONE


class AdjustmentAnswer(BaseModel):
    """One step from the list price to the final price."""

    step: Literal[
        "policy",
        "max_change",
        "ceiling",
        "min_margin",
        "floor",
        "rounding",
        "promotion",
        "quantity_tier",
    ]
    rule: str | None = Field(description="Id of the policy or promotion that made the step.")
    name: str | None
    amount: Amount = Field(description="What the step added to the unit price; negative where it took off.")
    price: Amount = Field(description="The unit price after the step.")


class RejectedAnswer(BaseModel):
    """A rule that was considered and did not apply."""

    rule: str
    name: str
    reason: str


class QuoteAnswer(BaseModel):
    """list_price plus every adjustment's amount is final_price, exactly."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "product_id": "P-100",
                    "location": "NY",
                    "currency": "USD",
                    "segment": "member",
                    "quantity": 1,
                    "list_price": 12.49,
                    "base_price": 12.99,
                    "discount_rate": 0.1,
                    "final_price": 11.69,
                    "total": 11.69,
                    "rounding_scope": "unit",
                    "adjustments": [
                        {"step": "rounding", "rule": "default", "name": "Default", "amount": 0.50, "price": 12.99},
                        {"step": "promotion", "rule": "ten-off", "name": "10 % off", "amount": -1.30, "price": 11.69},
                    ],
                    "rejected": [{"rule": "summer", "name": "Summer sale", "reason": "not_started"}],
                    "source": "cache",
                    "version": 3,
                    "computed_at": "2026-11-21T09:30:00Z",
                    "valid_until": None,
                }
            ]
        }
    )

    product_id: str
    location: str
    currency: str
    segment: Literal["everyone", "member"]
    quantity: int
    list_price: Amount
    base_price: Amount = Field(description="The unit price after policy, guardrails and rounding.")
    discount_rate: float = Field(description="Share of the base price that was taken off, with four decimals.")
    final_price: Amount = Field(description="What one unit costs.")
    total: Amount = Field(description="What the quantity costs.")
    rounding_scope: Literal["unit", "line"]
    adjustments: list[AdjustmentAnswer]
    rejected: list[RejectedAnswer]
    source: Literal["cache", "database", "stale", "simulation"]
    version: int = Field(ge=0, description="Rises with every change of the price sheet.")
    computed_at: datetime
    valid_until: datetime | None = Field(description="When a promotion next begins or ends.")


class BatchRequest(_Request):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"product_id": "P-100", "user_location": "NY"},
                        {"product_id": "P-101", "user_location": "LA", "quantity": 12},
                    ]
                }
            ]
        },
    )

    items: list[PriceRequest] = Field(min_length=1, max_length=MAX_ITEMS)


class BatchItem(BaseModel):
    """A quote, or the problem that there is instead."""

    status: Literal[200, 404, 503]
    quote: QuoteAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    """One item per item of the request, in its order."""

    items: list[BatchItem]


class SimulationRequest(PriceRequest):
    """A quote under other circumstances. What is left out is as stored."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"product_id": "P-100", "user_location": "NY", "cost": 9.10, "as_of": "2026-12-24T12:00:00Z"}]
        },
    )

    as_of: Annotated[AwareDatetime | None, AfterValidator(_in_calendar)] = Field(
        None, description="The instant to quote for; now, where it is left out."
    )
    list_price: Money | None = None
    cost: Money | None = None
    competitor_price: Money | None = None
    demand_index: float | None = Field(None, ge=0, le=10, description="1 is ordinary demand.")
    stock: int | None = Field(None, ge=0, le=10**12)
    policies: list[Policy] = Field(default_factory=list, max_length=20)
    promotions: list[Promotion] = Field(default_factory=list, max_length=20)


class VersionAnswer(BaseModel):
    """One version of a price, in force from `computed_at` up to `until` (null: still)."""

    version: int
    computed_at: datetime
    until: datetime | None
    list_price: Amount
    base_price: Amount
    everyone_price: Amount = Field(description="The final price of one unit for everyone.")
    member_price: Amount
    cause: str = Field(
        description="What led to it: event:<id>, events:<id>,<id> of several together, import:<name>, boundary, …"
    )
    adjustments: list[AdjustmentAnswer] = Field(description="The steps from the list price to everyone_price.")
    rejected: list[RejectedAnswer] = Field(description="The rules that did not apply to everyone, and why.")


class LowestAnswer(BaseModel):
    """The lowest final prices of one unit in the 30 days that ended when `before` began, in the location's
    time zone: what EU Directive 98/6/EC, article 6a (Omnibus) asks for beside a reduction on that day."""

    before: date
    everyone_price: Amount
    member_price: Amount


class HistoryAnswer(BaseModel):
    product_id: str
    location: str
    currency: str
    versions: list[VersionAnswer] = Field(description="Newest first.")
    next_before: int | None = Field(description="Give as `before_version` for the next page; null on the last.")
    lowest_30_days: LowestAnswer | None = Field(description="Null where there was no price in those days.")


class MarketEvent(Envelope):
    """An event as it is published. Left out, `id` is made from the Idempotency-Key, or at random."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"type": "cost.changed", "subject": "P-100", "location": "NY", "data": {"amount": 9.10}},
                {"type": "recalculate"},
            ]
        },
    )


class PublishedAnswer(BaseModel):
    """The event is in the stream; it survives the death of any one process."""

    status: Literal["accepted"]
    channel: str
    event_id: str
    trace_id: str


class PublishedManyAnswer(BaseModel):
    """All events are in the stream; they survive the death of any one process."""

    status: Literal["accepted"]
    accepted: int = Field(description="Events that are new.")
    duplicates: int = Field(description="Events whose ids were known: published before, by a try of this request too.")
    event_ids: list[str] = Field(description="The id of each event, in the order of the request.")
    trace_id: str


class DeadLetterSummary(BaseModel):
    """An event that nobody could apply. What is not known is null."""

    letter_id: str
    dead_since: datetime
    event_id: str | None
    type: EventType | None
    subject: str | None
    location: str | None
    replayable: bool = Field(description="False for a message that is no event.")
    reason: str
    attempts: int = Field(description="How often it was tried.")
    first_error: str | None
    first_failed_at: datetime | None
    last_error: str | None
    last_failed_at: datetime | None
    trace_id: str | None = Field(description="Of the trace that the event belongs to.")
    stream_id: str | None = Field(description="Its place in the stream; null where it never was in it.")


class DeadLetter(DeadLetterSummary):
    event: dict[str, Any] | None = Field(description="The event as it was published.")
    message: str | None = Field(description="The beginning of a message that is no event.")


class DeadLetterPage(BaseModel):
    items: list[DeadLetterSummary] = Field(description="The newest first.")
    next_before: str | None = Field(description="Give as `before` for the next page; null on the last.")
    total: int = Field(description="How many dead letters there are in all.")


class ReplayedAnswer(BaseModel):
    """The event is in the stream again."""

    letter_id: str
    event_id: str
    stream_id: str


class DeadLetterIds(_Request):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"letter_ids": ["1763781600000-0"]}]})

    letter_ids: list[LetterId] = Field(min_length=1, max_length=1000)


class RefusedLetter(BaseModel):
    letter_id: str
    reason: str


class ReplayedManyAnswer(BaseModel):
    """What became of each dead letter."""

    replayed: list[ReplayedAnswer]
    refused: list[RefusedLetter] = Field(description="Those that hold no event.")
    gone: list[str] = Field(description="Those that are not there: replayed or discarded before.")
    not_yet: list[str] = Field(description="Those still to be replayed, after Retry-After seconds.")


class DiscardedAnswer(BaseModel):
    discarded: list[str]
    gone: list[str] = Field(description="Those that are not there: replayed or discarded before.")


class EventStatus(BaseModel):
    """What became of an event: accepted (it waits to be applied), applied, or dead."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "event_id": "stock-4711",
                    "status": "applied",
                    "accepted_at": "2026-11-21T09:30:00.120Z",
                    "applied_at": "2026-11-21T09:30:00.131Z",
                    "task_id": None,
                    "dead_letter": None,
                }
            ]
        }
    )

    event_id: str
    status: Literal["accepted", "applied", "dead"]
    accepted_at: datetime | None = Field(description="Null where that is no longer remembered.")
    applied_at: datetime | None
    task_id: str | None = Field(description="The recalculation that it became, whose progress GET /tasks tells.")
    dead_letter: DeadLetterSummary | None = Field(description="Why it was set aside.")


class TaskAccepted(BaseModel):
    task_id: str


class PolicyPage(BaseModel):
    items: list[Policy]
    next_after: str | None = Field(description="Give as `after` for the next page; null on the last.")


class PromotionPage(BaseModel):
    items: list[Promotion]
    next_after: str | None = Field(description="Give as `after` for the next page; null on the last.")


class CreatedKey(ApiKey):
    """A new key, and what is known of it."""

    key: str = Field(description="To be sent as X-API-Key. It is shown in this answer and never again.")


class Rotation(_Request):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_s": 3600}]})

    overlap_s: int = Field(86_400, ge=0, le=LONGEST_OVERLAP_S, description="How long the old key goes on, in seconds.")
    expires_at: AwareDatetime | None = Field(
        None, description="Of the new key. Left out: after as long as the old one was made for."
    )


class KeyPage(BaseModel):
    items: list[ApiKey]
    next_after: str | None = Field(description="Give as `after` for the next page; null on the last.")


class ConsumerPage(BaseModel):
    items: list[Consumer]
    next_after: str | None = Field(description="Give as `after` for the next page; null on the last.")


class Used(BaseModel):
    requests: int = Field(description="That were answered.")
    failed: int = Field(description="Those of them that were answered with a 5xx.")
    sent_bytes: int = Field(description="Of the answers' bodies.")
    latency_ms: float = Field(description="Their mean.")


class UsageItem(Used):
    """With a value for each name in `by`."""

    period: datetime | None = Field(description="When it begins, UTC; null where there is only one.")
    key_id: str | None = Field(None, description="Empty: without a key.")
    user_id: str | None = Field(
        None,
        description="What clients said in X-User-ID, up to 128 characters; empty: nothing, or more than 1,024 bytes.",
    )
    route: str | None = None
    method: str | None = None
    status: str | None = None


class UsageAnswer(BaseModel):
    from_: datetime = Field(alias="from")
    until: datetime = Field(description="Not included.")
    per: Per
    by: list[By]
    complete_until: datetime = Field(description="Every record that was in the stream before this is counted.")
    missing: int = Field(description="Requests of this time that were answered and have no record (yet).")
    gaps: int = Field(description="In how many pieces they are; `pricing telemetry gaps` tells each.")
    total: Used = Field(description="Of all rows, also those on other pages.")
    items: list[UsageItem]
    next_skip: int | None = Field(description="Give as `skip` for the next page; null on the last.")


class TaskPage(BaseModel):
    items: list[Task]
    next_before: str | None = Field(description="Give as `before` for the next page; null on the last.")


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    status: Literal["ready", "degraded", "not_ready", "leaving"] = Field(
        description="degraded: a store is away, but known prices are served."
    )
    checks: dict[str, str] = Field(description="Per store: ok, or what is wrong.")
