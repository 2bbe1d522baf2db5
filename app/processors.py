"""Each API process has processors of its own, as far as there are enough.

The kernel shares out work, but not by who is waited for: background work that gives way keeps a processor as busy as
any other does. So of two processors the API processes often had one for both, and each waited for the other (ADR 15).
"""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

Share = frozenset[int]
"""Some of the processors that we may use, by the numbers that the kernel gives them."""


def next_share(of: int, taken: Iterable[Share]) -> Share:
    """What the next of so many processes should have, where others have these: what the fewest have. Shares do not
    overlap; where there are more processes than processors, several have the same."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return frozenset()
    ours = sorted(os.sched_getaffinity(0))
    shares = [frozenset(ours[nth::of]) for nth in range(min(of, len(ours)))]
    users = Counter(taken)
    return min(shares, key=lambda share: users[share])


def keep_to(share: Share) -> None:
    """Let this process, and the threads that it will start, run nowhere else."""
    if share:
        with suppress(OSError):  # gone meanwhile, as from a container that got less
            os.sched_setaffinity(0, share)
