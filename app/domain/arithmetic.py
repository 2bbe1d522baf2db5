"""Integer arithmetic on whole columns. Nothing here makes a binary float."""

import numpy as np
from numpy.typing import NDArray

from app.domain.columns import Column
from app.domain.money import SCALE


def round_to(amount: Column, grain: Column | int) -> Column:
    """To the nearest multiple of `grain`, half up. `amount` is not negative."""
    return np.asarray((amount + grain // 2) // grain * grain)


def times_bp(amount: Column, rate_bp: Column | int, grain: Column | int) -> Column:
    """`amount` × `rate_bp` / 10,000, rounded half up to a multiple of `grain`, in one rounding."""
    divisor = grain * SCALE
    return np.asarray((amount * rate_bp + divisor // 2) // divisor * grain)


def mix(state: NDArray[np.uint64], column: Column) -> NDArray[np.uint64]:
    """Fold a column into a 64-bit hash per row (the finaliser of splitmix64, Steele and others 2014)."""
    x = state * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
