"""The formula's inputs as columns: structured numpy arrays in which every field is an int64.

Amounts are minor units, rates basis points, instants milliseconds since 1970 (UTC). `ABSENT` stands for
"not known" and for "not restricted to one": a cost that nobody sent, a rule that no location narrows.
`name_hash` tells one name of a rule from another, for the formula itself has no use for names.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ABSENT = -1
NEVER = 2**62
"""An instant that is not reached: what an open end is stored as."""

Table = NDArray[np.void]
Column = NDArray[np.int64]
RowKey = tuple[int, int]
"""(product key, location key): one record of `ROW_KEYS`."""

BEFORE_ALL: RowKey = (0, 0)
AFTER_ALL: RowKey = (2**31 - 1, 2**31 - 1)
"""Keys before and after those of every row."""


class PolicyKind(IntEnum):
    LIST = 0
    MARKET = 1
    COMPETITOR = 2
    COST_PLUS = 3
    MARKDOWN = 4


class PromotionKind(IntEnum):
    PERCENT = 0
    AMOUNT = 1
    FIXED = 2


class Segment(IntEnum):
    EVERYONE = 0
    MEMBER = 1


EVERYONE, MEMBER = Segment  # looking into an enumeration takes several times as long


def _all_int64(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names])


_SCOPE = ("product_key", "category_key", "department_key", "location_key", "currency_number")

ROW_KEYS = _all_int64("product_key", "location_key")
"""What names one row: a product at a location."""

PRICE_INPUTS = _all_int64(*_SCOPE, "list_price", "cost", "competitor_price", "demand_bp", "stock")

POLICIES = _all_int64(
    "policy_key", *_SCOPE, "kind", "rate_bp", "amount", "threshold", "min_margin_bp", "floor", "ceiling",
    "max_change_bp", "rounding_increment", "rounding_ending", "line_rounding", "name_hash",
)  # fmt: skip

TIERS = _all_int64("policy_key", "min_quantity", "off_bp")

PROMOTIONS = _all_int64(
    "promotion_key", *_SCOPE, "kind", "value", "segment", "stackable", "priority", "starts_at", "ends_at",
    "name_hash",
)  # fmt: skip


NEW_SHEETS = _all_int64(
    "product_key", "location_key", "version", "digest", "valid_until", "computed_at", "list_price", "base_price",
    "everyone_price", "member_price",
)  # fmt: skip
"""What the store keeps of new sheets beside their JSON; prices are whole minor units."""


class Rules(NamedTuple):
    """Every rule that may concern a batch; `tiers` is sorted by policy and minimum quantity."""

    policies: Table
    tiers: Table
    promotions: Table


def empty_rules() -> Rules:
    return Rules(np.zeros(0, POLICIES), np.zeros(0, TIERS), np.zeros(0, PROMOTIONS))


def packed(keys: Table) -> Column:
    """Both keys of each row, which are 31 bits wide, as one number; in the same order."""
    return np.asarray(keys["product_key"] << 32 | keys["location_key"])


def unpacked(numbers: Column) -> Table:
    """What was `packed`, with dtype `ROW_KEYS`."""
    keys = np.empty(len(numbers), ROW_KEYS)
    keys["product_key"], keys["location_key"] = numbers >> 32, numbers & (1 << 32) - 1
    return keys
