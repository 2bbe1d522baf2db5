"""Integer arithmetic on whole columns. Nothing here makes a binary float."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.columns import Column
from app.domain.money import SCALE

Grain = Column | int
"""What prices are multiples of: `SCALE` where they round per unit, 1 where per line. One number where the
whole batch agrees, as division by a constant is several times faster."""


def pick(grain: Grain, index: Any) -> Grain:
    return grain if isinstance(grain, int) else grain[index]


def round_to(amount: Column, grain: Grain) -> Column:
    """To the nearest multiple of `grain`, half up. `amount` is not negative."""
    return np.asarray((amount + grain // 2) // grain * grain)


def times_bp(amount: Column, rate_bp: Column | int, grain: Grain) -> Column:
    """`amount` × `rate_bp` / 10,000, rounded half up to a multiple of `grain`, in one rounding."""
    divisor = grain * SCALE
    return np.asarray((amount * rate_bp + divisor // 2) // divisor * grain)


def times_bp_down(amount: Column, rate_bp: Column, grain: Grain) -> Column:
    """As `times_bp`, rounded down."""
    return np.asarray(amount * rate_bp // (grain * SCALE) * grain)


def times_bp_up(amount: Column, rate_bp: Column, grain: Grain) -> Column:
    """As `times_bp`, rounded up."""
    return -times_bp_down(-amount, rate_bp, grain)


def run_starts(ordered: Column) -> NDArray[np.intp]:
    """Where each run of equal neighbours starts."""
    new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


def run_lengths(starts: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """How long the run from each of `starts` is, where there are `total` values in all."""
    ends = np.empty_like(starts)
    ends[:-1], ends[-1:] = starts[1:], total
    return np.asarray(ends - starts)


def run_ranks(ordered: Column) -> Column:
    """Each value's place within its run of equal neighbours, from 0."""
    starts = run_starts(ordered)
    return np.arange(len(ordered)) - np.repeat(starts, run_lengths(starts, len(ordered)))


def hash_rows(columns: Iterable[Column]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row: a polynomial in an odd multiplier, then the finaliser of splitmix64
    (Steele and others 2014), so that hashes may be added up."""
    state: Any = np.uint64(0)
    for column in columns:
        state = state * np.uint64(0x9E3779B97F4A7C15) + column.view(np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))
