"""Each API process has processors of its own, where they can be shared out evenly.

The kernel shares out work, but not by who is waited for: background work that gives way keeps a processor as busy as
any other does. So of two processors the API processes often had one for both, and each waited for the other (ADR 15).
"""

import os
from collections.abc import Mapping
from contextlib import suppress


def free_part(of: int, others: Mapping[int, int | None]) -> int:
    """One of so many parts for a new process: what none of those has who will be there with it. By age, `others` are
    the parts of the processes that there are; of too many, as at a reload, the first ones leave."""
    staying = sorted(others)[max(0, len(others) - of + 1) :]
    taken = {others[age] for age in staying}
    return next(part for part in range(of) if part not in taken)


def keep_to(part: int, of: int) -> None:
    """Let this process, and the threads that it will start, run on this part of our processors alone. Where there is
    one process, or where some processors would have more of them than others, all run wherever they can."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        return
    ours = sorted(os.sched_getaffinity(0))
    if of > 1 and (of <= len(ours) or of % len(ours) == 0):
        with suppress(OSError):  # gone meanwhile, as from a container that got less
            os.sched_setaffinity(0, ours[part % len(ours) :: min(of, len(ours))])
