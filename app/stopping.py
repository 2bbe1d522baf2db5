"""Whether a service was asked to stop, in a byte of memory that a process shares with all that it forks.

So a master's children know from the first look that everything is ending, and not only they themselves.
"""

import mmap

_everything = mmap.mmap(-1, 1)
_this_process = False


def ask() -> None:
    """Everything that this process has forked or will fork shall end, and itself."""
    _everything[0] = 1


def ask_this_process() -> None:
    """This process shall end; those beside it go on."""
    global _this_process
    _this_process = True


def everything_stops() -> bool:
    return bool(_everything[0])


def asked() -> bool:
    """Whether this process shall come to an end soon."""
    return _this_process or everything_stops()
