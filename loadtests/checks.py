"""Whether an answer is right: the answer to its question, explained to the cent, and not older than it may be.

Which rules a price followed is not known to whoever asks, but every answer explains itself exactly, and prices have
versions, so a reader can tell a wrong one and an old one.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

Answer = dict[str, Any]


class Outdated(AssertionError):
    """A price that is older than the limit allows."""


def decode(content: bytes) -> Answer:
    """JSON with amounts as the exact decimals that they are written as."""
    answer: Answer = json.loads(content, parse_float=Decimal)
    return answer


def wrong(quote: Answer, question: Mapping[str, Any]) -> str | None:
    """What is wrong with the quote, or None."""
    segment = "member" if question.get("is_prime_member") else "everyone"
    asked = (question["product_id"], question["user_location"], segment, question.get("quantity", 1))
    if tuple(quote[name] for name in ("product_id", "location", "segment", "quantity")) != asked:
        return "the answer to another question"
    listed, final, total = (Decimal(quote[name]) for name in ("list_price", "final_price", "total"))
    if listed + sum(step["amount"] for step in quote["adjustments"]) != final:
        return "the adjustments do not add up to the price"
    if final < 0:
        return "a price below zero"
    # Where fractions are carried to the line, a unit may bring up to half a minor unit, and the line, too.
    minor = Decimal(1).scaleb(_exponent(final))
    carried = minor * (quote["quantity"] + 1) / 2 if quote["rounding_scope"] == "line" else 0
    if abs(total - final * quote["quantity"]) > carried:
        return "the total is not the price of its units"
    if quote["source"] not in ("cache", "database", "stale"):
        return f"source {quote['source']!r}"
    return None


def inexact(quote: Answer) -> str | None:
    """Whether its amounts are written with different decimals, though they are of one currency."""
    amounts = [quote[name] for name in ("list_price", "base_price", "final_price", "total")]
    amounts += [step["amount"] for step in quote["adjustments"]]
    return "amounts with different decimals" if len({_exponent(Decimal(amount)) for amount in amounts}) > 1 else None


def _exponent(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def dearer_for_members(everyone: Answer, member: Answer) -> bool:
    """Of the same version of one price, in the same quantity."""
    return everyone["version"] == member["version"] and member["final_price"] > everyone["final_price"]


class Freshness:
    """What was read of each price so far. `bound_s` is how long an old one may still be read, in seconds."""

    def __init__(self, bound_s: float) -> None:
        self.bound_s = bound_s
        self._seen: dict[tuple[str, str], list[tuple[int, float]]] = {}

    def outdated(self, quote: Answer, sent_at: float, age_s: float = 0) -> str | None:
        """Why the quote is older than the bound allows, or None.

        `sent_at` is when it was asked for, in seconds since 1970; `age_s` the answer's Age.
        """
        if age_s > self.bound_s:
            return f"last confirmed {age_s:g} s ago"
        until = quote["valid_until"]
        if until is not None and datetime.fromisoformat(until).timestamp() < sent_at - self.bound_s:
            return f"it held until {until}"
        newest = self._known_longer(quote, sent_at)
        if newest is not None and quote["version"] < newest:
            return f"version {quote['version']}, but {newest} was read more than {self.bound_s:g} s before"
        return None

    def _known_longer(self, quote: Answer, sent_at: float) -> int | None:
        """The newest version of that price that somebody had read longer than the bound before."""
        seen = self._seen.setdefault((quote["product_id"], quote["location"]), [])
        while len(seen) > 1 and seen[1][1] < sent_at - self.bound_s:
            del seen[0]
        known = seen[0][0] if seen and seen[0][1] < sent_at - self.bound_s else None
        if not seen or quote["version"] > seen[-1][0]:
            seen.append((quote["version"], sent_at))
        return known
