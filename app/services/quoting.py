"""Quotes: the sheet from wherever it is to be had, and a few integer operations."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from app.domain.columns import ROW_KEYS, Segment
from app.domain.encoding import encode_rows
from app.domain.quote import Quote, quote
from app.domain.rows import StoredSheet
from app.domain.sheet import EncodedSheet, decode_sheet
from app.domain.sheets import compute_sheets
from app.errors import NotFound, Unavailable
from app.services.ports import Clock, Store, Transaction
from app.services.reading import SheetReader
from app.services.slots import UNKNOWN, Name, Slot

MakeSlot = Callable[[int, int | None, bytes, int], Slot]
"""A slot of (version, valid until, payload) that was checked at an instant; gives it its life."""


class QuoteRequest(NamedTuple):
    """One item: who asks for how many of what, where."""

    product_id: str
    location: str
    segment: Segment
    quantity: int


class Answer(NamedTuple):
    """A quote, for how long (ms) the price has not been checked, and whether it was in this process' memory."""

    quote: Quote
    age_ms: int
    at_hand: bool


async def quote_each(
    requests: Sequence[QuoteRequest], reader: SheetReader, clock: Clock
) -> list[Answer | NotFound | Unavailable]:
    """A quote per request, in order, or why there is none: no such price, or it is nowhere to be had, not even
    stale."""
    names = list(dict.fromkeys((request.product_id, request.location) for request in requests))
    found = await reader.find_each(names)
    now = clock()
    answers: list[Answer | NotFound | Unavailable] = []
    for request in requests:
        item = found[request.product_id, request.location]
        if isinstance(item, Unavailable):
            answers.append(item)
            continue
        slot, source, at_hand = item
        if slot.unknown:
            answers.append(NotFound(slot.payload.decode()))
        else:
            sheet = decode_sheet(slot.payload)
            made = quote(request.product_id, request.location, sheet, request.segment, request.quantity, source)
            answers.append(Answer(made, max(0, now - slot.checked_at), at_hand))
    return answers


def load_slots(store: Store, names: Sequence[Name], clock: Clock, make_slot: MakeSlot) -> dict[Name, Slot]:
    """The stored sheets; one that is not there yet, or whose time is over, is computed but not stored: that
    is the workers' part, and until then every reader computes the same: whether a time is over says the database's
    clock, because what is loaded here is cached for every host."""
    with store.reading() as tx:
        now = clock()
        found: dict[Name, Slot] = {}
        over: list[tuple[Name, StoredSheet]] = []
        for name, stored in zip(names, tx.sheets.stored(names), strict=True):
            if (reason := why_unknown(name, stored)) is not None:
                found[name] = make_slot(UNKNOWN, None, reason.encode(), now)
            elif stored.sheet is not None and _holds(stored, now):
                found[name] = make_slot(stored.version, stored.valid_until, stored.sheet, now)
            else:
                over.append((name, stored))
        compute: dict[tuple[int, int], Name] = {}
        at = tx.now_ms() if over else now
        for name, stored in over:
            if stored.sheet is not None and _holds(stored, at):
                found[name] = make_slot(stored.version, stored.valid_until, stored.sheet, now)
            elif stored.product_key is not None and stored.location_key is not None:
                compute[stored.product_key, stored.location_key] = name
        if compute:
            for sheet in _compute(tx, list(compute), at):
                name = compute[sheet.product_key, sheet.location_key]
                found[name] = make_slot(sheet.version, sheet.valid_until, sheet.payload, now)
        return found


def _holds(stored: StoredSheet, at: int) -> bool:
    return stored.valid_until is None or stored.valid_until > at


def _compute(tx: Transaction, keys: list[tuple[int, int]], at: int) -> list[EncodedSheet]:
    stored, rules, labels, _ = tx.prices.to_price(np.array(keys, ROW_KEYS), at)
    sheets = compute_sheets(stored.inputs, rules, at)
    return encode_rows(sheets, rules, labels, stored.versions, at, np.arange(len(sheets)))


def why_unknown(name: Name, stored: StoredSheet) -> str | None:
    """Why a name has no price, or None where it has one."""
    product_id, location = name
    if stored.product_key is None:
        return f"there is no product {product_id!r}"
    if stored.location_key is None:
        return f"there is no location {location!r}"
    if not stored.listed:
        return f"product {product_id!r} has no price at {location!r}"
    return None
