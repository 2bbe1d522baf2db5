"""Background work gives way to those who answer, also where `nice` alone does nothing.

Linux shares processors out among sessions first, and by niceness only within each (autogroup, sched(7)); each child of
`pricing up` has a session of its own, and so has each process of PostgreSQL. In containers, and where autogroup is off,
niceness is all there is.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

_ATTEMPTS, _PAUSE_S = 10, 0.1
"""The kernel takes one such change in 100 ms from all who are not privileged, and refuses the others."""


def own() -> int:
    """How nice this process was started: 0 to 19."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def extend_to_session() -> None:
    """Let the niceness of this process hold for its session among the others."""
    if own() > 0:
        _set_of_session(os.getpid(), own())


def extend_to_postgres(pid: int) -> None:
    """Let it hold for a process of PostgreSQL on this machine that works for us, where we may."""
    with suppress(OSError):  # it runs as another user, or is none of this machine's
        if own() > 0 and Path(f"/proc/{pid}/comm").read_text().startswith("postgres"):
            os.setpriority(os.PRIO_PROCESS, pid, own())
            _set_of_session(pid, own())


def _set_of_session(pid: int, niceness: int) -> None:
    for _ in range(_ATTEMPTS):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
            return
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:  # there is no autogroup, or it is not ours
            return
