"""Run a command that cannot outlive its parent: leash.py PARENT_PID SIGNAL UID:GID COMMAND …

A program of its own, because what it does belongs between fork and exec, where a Python
function is not safe; and because changing the user (`-` keeps it) clears the death signal,
so that the two have to be done here in this order.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, death_signal, owner, *command = sys.argv[1:]
    if owner != "-":
        uid, gid = map(int, owner.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    die_with(int(parent), int(death_signal))
    os.execvp(command[0], command)  # noqa: S606  no shell is wanted


def die_with(parent: int, death_signal: int) -> None:
    """Get this signal when the parent dies; end where it has. Only Linux can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            sys.exit("the parent is gone")


if __name__ == "__main__":
    main()
