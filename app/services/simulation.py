"""What would it cost if …: the formula on stored inputs with some of them replaced. Nothing is stored."""

from collections.abc import Mapping, Sequence

import numpy as np

from app.domain.columns import ROW_KEYS, Segment
from app.domain.quote import Quote, quote
from app.domain.rules import Policy, Promotion
from app.domain.sheet import rows_to_sheets
from app.domain.sheets import compute_sheets
from app.errors import NotFound
from app.services.ports import Store
from app.services.quoting import why_unknown


def simulate(
    store: Store,
    name: tuple[str, str],
    segment: Segment,
    quantity: int,
    as_of: int,
    inputs: Mapping[str, int],
    policies: Sequence[Policy],
    promotions: Sequence[Promotion],
) -> Quote:
    """Quote (product id, location) at the instant `as_of` (ms) under other circumstances.

    `inputs` replaces fields of `PRICE_INPUTS` (minor units, basis points, pieces); the rules take the place
    of stored ones with the same id, policies also of those with the same scope. Raises `NotFound` and
    `InvalidInput`.
    """
    with store.transaction() as tx:
        (stored,) = tx.sheets.stored([name])
        if (reason := why_unknown(name, stored)) is not None:
            raise NotFound(reason)
        rows = tx.prices.inputs(np.array([(stored.product_key, stored.location_key)], ROW_KEYS))
        for field, value in inputs.items():
            rows.inputs[field] = value
        rules = tx.rules.rules(rows.inputs, as_of)
        every = np.arange(1)
        labels = tx.prices.labels(
            rows.inputs["product_key"], rules.policies["policy_key"], rules.promotions["promotion_key"]
        )
        rules, labels = tx.rules.with_policies(rules, labels, policies)
        rules, labels = tx.rules.with_promotions(rules, labels, promotions)
        sheets = compute_sheets(rows.inputs, rules, as_of)
        (sheet,) = rows_to_sheets(sheets, rules, labels, rows.versions, as_of, every)
    return quote(sheet, segment, quantity, "simulation")
