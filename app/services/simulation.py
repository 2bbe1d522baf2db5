"""What would it cost if …: the formula on stored inputs with some of them replaced. Nothing is stored."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np

from app.domain.columns import ROW_KEYS
from app.domain.encoding import encode_rows
from app.domain.money import to_minor
from app.domain.quote import Quote, quote
from app.domain.rules import Policy, Promotion
from app.domain.sheet import decode_sheet
from app.domain.sheets import compute_sheets
from app.errors import NotFound, within
from app.services.ports import Store
from app.services.quoting import QuoteRequest, why_unknown


def simulate(
    store: Store,
    request: QuoteRequest,
    as_of: int,
    amounts: Mapping[str, Decimal],
    others: Mapping[str, int],
    policies: Sequence[Policy],
    promotions: Sequence[Promotion],
) -> Quote:
    """Quote a request at the instant `as_of` (ms) under other circumstances.

    `amounts` (money) and `others` (basis points, pieces) replace fields of `PRICE_INPUTS`; the rules take
    the place of stored ones with the same id, policies also of those with the same scope. Raises `NotFound`
    and `InvalidInput`.
    """
    name = request.product_id, request.location
    with store.reading() as tx:
        (stored,) = tx.sheets.stored([name])
        if (reason := why_unknown(name, stored)) is not None:
            raise NotFound(reason)
        key = np.array([(stored.product_key, stored.location_key)], ROW_KEYS)
        rows, rules, labels, _ = tx.prices.to_price(key, as_of)
        decimals = labels.locations[int(rows.inputs["location_key"][0])][1].decimals
        for field, amount in amounts.items():
            with within(field):
                rows.inputs[field] = to_minor(amount, decimals)
        for field, value in others.items():
            rows.inputs[field] = value
        rules, labels = tx.supposed.with_policies(rules, labels, policies)
        rules, labels = tx.supposed.with_promotions(rules, labels, promotions)
    sheets = compute_sheets(rows.inputs, rules, as_of)
    (encoded,) = encode_rows(sheets, rules, labels, rows.versions, as_of, np.arange(1))
    return quote(*name, decode_sheet(encoded.payload), request.segment, request.quantity, "simulation")
