"""Quotes: the sheet from the cache, or, on a miss, from the database, and a few integer operations."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np

from app.domain.columns import ROW_KEYS, Segment
from app.domain.quote import Quote, Source, quote
from app.domain.rows import StoredSheet
from app.domain.sheet import PriceSheet, decode_sheet, rows_to_sheets
from app.domain.sheets import compute_sheets
from app.errors import NotFound, Unavailable
from app.services.ports import Clock, Store, Transaction
from app.services.repricing import labels_for

Name = tuple[str, str]
"""A product's id and a location."""


class Unknown(NamedTuple):
    """There is no such price, because of `reason`."""

    reason: str


Found = PriceSheet | Unknown


class ReadCache(Protocol):
    async def get_many(self, names: Sequence[Name]) -> list[Found | None]: ...
    async def put(self, entries: Iterable[tuple[Name, Found]]) -> None: ...


class QuoteRequest(NamedTuple):
    """One item: who asks for how many of what, where."""

    product_id: str
    location: str
    segment: Segment
    quantity: int


async def quote_each(
    requests: Sequence[QuoteRequest], *, cache: ReadCache, store: Store, clock: Clock
) -> list[Quote | NotFound]:
    """A quote per request, in order, or why there is none. One round trip to the cache, and at most one load
    from the database for all that it lacks. Raises `Unavailable` where neither has an answer."""
    names = list(dict.fromkeys((request.product_id, request.location) for request in requests))
    sheets = await find_sheets(names, cache=cache, store=store, clock=clock)
    answers: list[Quote | NotFound] = []
    for request in requests:
        found, source = sheets[request.product_id, request.location]
        if isinstance(found, Unknown):
            answers.append(NotFound(found.reason))
        else:
            answers.append(quote(found, request.segment, request.quantity, source))
    return answers


async def find_sheets(
    names: Sequence[Name], *, cache: ReadCache, store: Store, clock: Clock
) -> dict[Name, tuple[Found, Source]]:
    """The sheets of these names, and where each came from. Without the cache the database answers alone."""
    try:
        cached = await cache.get_many(names)
        cache_answers = True
    except Unavailable:
        cached, cache_answers = [None] * len(names), False
    now = clock()
    found: dict[Name, tuple[Found, Source]] = {}
    missing: list[Name] = []
    for name, entry in zip(names, cached, strict=True):
        if entry is None or (isinstance(entry, PriceSheet) and expired(entry, now)):
            missing.append(name)
        else:
            found[name] = entry, "cache"
    if missing:
        loaded = await asyncio.to_thread(load_sheets, store, missing, clock)
        found |= {name: (entry, "database") for name, entry in loaded.items()}
        if cache_answers:
            with suppress(Unavailable):  # the answer is right without it, and the next miss tries again
                await cache.put(loaded.items())
    return found


def load_sheets(store: Store, names: Sequence[Name], clock: Clock) -> dict[Name, Found]:
    """The stored sheets; one that is not there yet, or whose time is over, is computed but not stored: that
    is the workers' part, and until then every reader computes the same."""
    with store.transaction() as tx:
        now = clock()
        found: dict[Name, Found] = {}
        compute: dict[tuple[int, int], Name] = {}
        for name, stored in zip(names, tx.sheets.stored(names), strict=True):
            if (reason := why_unknown(name, stored)) is not None:
                found[name] = Unknown(reason)
                continue
            sheet = None if stored.sheet is None else decode_sheet(stored.sheet)
            if sheet is not None and not expired(sheet, now):
                found[name] = sheet
            elif stored.product_key is not None and stored.location_key is not None:
                compute[stored.product_key, stored.location_key] = name
        if compute:
            found |= {compute[key]: sheet for key, sheet in _compute(tx, list(compute), now)}
        return found


def _compute(tx: Transaction, keys: list[tuple[int, int]], now: int) -> Iterable[tuple[tuple[int, int], PriceSheet]]:
    stored = tx.prices.inputs(np.array(keys, ROW_KEYS))
    rules = tx.rules.rules(stored.inputs, now)
    sheets = compute_sheets(stored.inputs, rules, now)
    every = np.arange(len(sheets))
    labels = labels_for(tx, sheets, rules, every)
    computed = rows_to_sheets(sheets, rules, labels, stored.versions, now, every)
    keys_found = zip(stored.inputs["product_key"].tolist(), stored.inputs["location_key"].tolist(), strict=True)
    return zip(keys_found, computed, strict=True)


def expired(sheet: PriceSheet, now: int) -> bool:
    return sheet.valid_until is not None and sheet.valid_until <= now


def why_unknown(name: Name, stored: StoredSheet) -> str | None:
    product_id, location = name
    if stored.product_key is None:
        return f"there is no product {product_id!r}"
    if stored.location_key is None:
        return f"there is no location {location!r}"
    if not stored.listed:
        return f"product {product_id!r} has no price at {location!r}"
    return None
