"""Playing the weeks: prices to where they stood, then per week its changes as events and its purchases as quotes."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.catalog.completejourney import loyalty_promotion
from app.catalog.merging import Progress
from app.domain.money import to_decimal
from app.errors import Unavailable
from app.replay.service import Service, at_once
from app.replay.year import Price, Purchase, Year

SEVERAL_PRICES = "the week held more than one price"
OTHER_PRICE = "the service quoted another price than the week's"

_PATIENCE_S = 60.0
"""How long the service may go without applying any event before that is called a failure."""

_LISTED = 20


@dataclass(slots=True)
class Tally:
    """What came of one week, or of many. `mismatches` counts by reason; `defects` are the first ones that the
    data does not explain; `possible` is how many purchases were at the week's price, so can be quoted right."""

    purchases: int = 0
    exact: int = 0
    possible: int = 0
    events: int = 0
    event_seconds: float = 0.0
    quote_seconds: float = 0.0
    mismatches: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.purchases += other.purchases
        self.exact += other.exact
        self.possible += other.possible
        self.events += other.events
        self.event_seconds += other.event_seconds
        self.quote_seconds += other.quote_seconds
        self.mismatches += other.mismatches
        self.defects += other.defects[: _LISTED - len(self.defects)]


class Player:
    """One replay. Its events' ids hold a name of its own, so that a second replay is not taken for a repeat."""

    def __init__(self, service: Service, concurrency: int, progress: Progress) -> None:
        self._service, self._concurrency, self._progress = service, concurrency, progress
        self._run = secrets.token_hex(4)

    async def prepare(self, year: Year, first: int, last: int) -> Tally:
        """Bring every price to where it stood when week `first` began."""
        wanted = year.standing(first, last)
        differing: list[tuple[Price, Price]] = []
        for start in range(0, len(wanted), 1000):
            part = wanted[start : start + 1000]
            now = await self._service.standing(part)
            differing += [(was, price) for was, price in zip(now, part, strict=True) if was != price]
            self._progress(f"prices before week {first}", min(start + 1000, len(wanted)), len(wanted))
        return await self._change(f"{first}-before", differing)

    async def week(self, year: Year, week: int) -> Tally:
        """The week's price changes, and when they are in force, its purchases."""
        tally = await self._change(str(week), year.changes(week))
        began = time.monotonic()
        bought = list(year.purchases(week))

        async def buy(purchase: Purchase) -> None:
            quoted = await self._service.member_price(purchase.product, purchase.store, purchase.quantity)
            compare(tally, week, purchase, quoted)
            if tally.purchases % 100 == 0 or tally.purchases == len(bought):
                self._progress(f"week {week}: purchases", tally.purchases, len(bought))

        await at_once(self._concurrency, bought, buy)
        tally.quote_seconds = time.monotonic() - began
        return tally

    async def _change(self, when: str, changes: Sequence[tuple[Price, Price]]) -> Tally:
        """Publish what makes each first price its second, and wait until the service quotes it."""
        began = time.monotonic()
        stage = f"week {when}: events"
        events = [event for was, price in changes for event in events_of(f"{self._run}:{when}", was, price)]
        done = 0

        async def publish(event: dict[str, Any]) -> None:
            nonlocal done
            await self._service.publish(event)
            done += 1
            self._progress(stage, done, len(events))

        await at_once(self._concurrency, events, publish)
        await self._applied([price for _, price in changes])
        return Tally(events=len(events), event_seconds=time.monotonic() - began)

    async def _applied(self, wanted: list[Price]) -> None:
        progressed = time.monotonic()
        while wanted:
            now = await self._service.standing(wanted)
            late = [price for price, is_now in zip(wanted, now, strict=True) if price != is_now]
            if len(late) < len(wanted):
                progressed = time.monotonic()
            elif time.monotonic() - progressed > _PATIENCE_S:
                product, store = late[0].product, late[0].store
                raise Unavailable(
                    f"{len(late):,} price changes were accepted but are not in force after {_PATIENCE_S:g} s, such as "
                    f"that of product {product} at {store}: do a worker and a listener run? `pricing doctor` looks"
                )
            wanted = late
            await asyncio.sleep(0.1 if wanted else 0)


def events_of(prefix: str, was: Price, price: Price) -> Iterator[dict[str, Any]]:
    """A change of the list price and one of the loyalty price, where they changed."""
    about = {"source": "/replay/completejourney", "subject": str(price.product), "location": str(price.store)}
    event_id = f"replay:{prefix}:{price.product}:{price.store}"
    if was.regular != price.regular:
        amount = {"amount": to_decimal(price.regular, 2)}
        yield {"id": f"{event_id}:list", "type": "list_price.changed", **about, "data": amount}
    loyalty = loyalty_promotion(price.product, price.store, price.paid)
    data = {"promotion": loyalty} if price.paid < price.regular else {"removed": loyalty["promotion_id"]}
    if _discount(was) != _discount(price):
        yield {"id": f"{event_id}:loyalty", "type": "promotion.changed", **about, "data": data}


def _discount(price: Price) -> int | None:
    return price.paid if price.paid < price.regular else None


def compare(tally: Tally, week: int, purchase: Purchase, quoted: int) -> None:
    """Count one purchase, and `quoted` (cents per unit) against what was paid."""
    tally.purchases += 1
    tally.possible += purchase.paid == purchase.price
    if quoted == purchase.paid:
        tally.exact += 1
    elif purchase.several and quoted == purchase.price:
        tally.mismatches[SEVERAL_PRICES] += 1
    else:
        tally.mismatches[OTHER_PRICE] += 1
        if len(tally.defects) < _LISTED:
            tally.defects.append(
                f"week {week}, product {purchase.product}, store {purchase.store}: quoted {to_decimal(quoted, 2)}, "
                f"the week's price is {to_decimal(purchase.price, 2)}, paid {to_decimal(purchase.paid, 2)}"
            )
