"""Start child processes in order, restart the ones that die, stop them in reverse, stage by stage.

There is no thread: whoever waits calls `tick`. So a signal can never arrive half-way
through starting a process, and every process that was started is known.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
STEADY_S = 60.0  # a child that lived this long starts its back-off anew
LOG_BYTES = 10_000_000  # a longer log is set aside, once, when its child starts
HURRIED_GRACE_S = 3.0
LEASH = Path(__file__).with_name("leash.py")


@dataclass
class Child:
    """One process to keep alive. `owner` is the (uid, gid) to run as, if not our own; neighbours of the same `stage`
    are stopped together."""

    name: str
    argv: list[str]
    log: Path
    env: Mapping[str, str] | None = None
    owner: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    kill_signal: signal.Signals = signal.SIGKILL
    grace_s: float = 10.0
    stage: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    deaths: int = field(default=0, init=False)
    changed_at: float = field(default=0.0, init=False)

    @property
    def delay_s(self) -> float:
        """How long a dead child waits for its next start, in seconds."""
        return min(FIRST_DELAY_S * 2.0 ** max(self.deaths - 1, 0), LONGEST_DELAY_S)

    def last_lines(self, count: int = 15) -> str:
        """The end of the child's log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 64_000))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])


class Supervisor:
    """`say` gets one line per event; `on_change` is called whenever a process was started."""

    def __init__(self, say: Callable[[str], None], on_change: Callable[[], None] = lambda: None) -> None:
        self.children: list[Child] = []
        self._say = say
        self._on_change = on_change

    def start(self, child: Child) -> None:
        """Start `child`; it is restarted by `tick` and ended by `stop`."""
        self.children.append(child)
        self._spawn(child)

    def tick(self) -> None:
        """Notice who died, and restart whoever has waited long enough."""
        now = time.monotonic()
        for child in self.children:
            if child.process is None:
                if now >= child.changed_at + child.delay_s:
                    self._spawn(child)
                    self._say(f"{child.name} was started again")
            elif exited(child.process.pid):
                if now >= child.changed_at + STEADY_S:
                    child.deaths = 0
                code = reap(child.process)
                child.process, child.changed_at, child.deaths = None, now, child.deaths + 1
                self._say(f"{child.name} died ({told(code)}); next start in {child.delay_s:g} s, see {child.log}")

    def running(self) -> list[tuple[str, int, int]]:
        """Name, process id and stop signal of every child that was started, in that order."""
        return [(c.name, c.process.pid, int(c.stop_signal)) for c in self.children if c.process]

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End every child, the last started first; one that outstays its grace is killed. Once in a `hurry` each gets
        its signal again, which our own processes take for a wish to be quick."""
        for _, stage in groupby(reversed(self.children), key=lambda child: child.stage):
            ending = [_Ending(child, child.process, self._say) for child in stage if child.process]
            while ending := [end for end in ending if not end.is_over(hurry())]:
                time.sleep(0.02)
        self.children.clear()

    def _spawn(self, child: Child) -> None:
        if child.log.exists() and child.log.stat().st_size > LOG_BYTES:
            child.log.replace(child.log.with_suffix(".old.log"))
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                leashed(child.stop_signal, child.owner) + child.argv,
                env=child.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C in the terminal reaches us alone, and we stop
                # them in order; what a child leaves behind is found by its process group.
                start_new_session=True,
            )
        child.changed_at = time.monotonic()
        self._on_change()


class _Ending:
    """A child on its way out: one signal after the other, the last of which nobody survives."""

    def __init__(self, child: Child, process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
        self._child, self._process, self._say = child, process, say
        self._steps = [(child.stop_signal, child.grace_s), (child.kill_signal, 5.0), (signal.SIGKILL, 5.0)]
        self._hurried = False
        self._take_step()

    def is_over(self, hurry: bool) -> bool:
        if not exited(self._process.pid):
            if hurry and not self._hurried:
                self._hurried = True
                self._take_step(HURRIED_GRACE_S)
            if time.monotonic() < self._until:
                return False
            self._say(f"{self._child.name} did not stop on {self._steps.pop(0)[0].name}")
            if self._steps:
                self._take_step()
                return False
        reap(self._process)
        self._child.process = None
        return True

    def _take_step(self, longest_s: float = math.inf) -> None:
        number, grace_s = self._steps[0]
        self._until = time.monotonic() + min(grace_s, longest_s)
        if not exited(self._process.pid):
            os.kill(self._process.pid, number)


def leashed(death_signal: signal.Signals, owner: tuple[int, int] | None) -> list[str]:
    """What to put before a command so that it gets `death_signal` when we die, and runs as `owner`."""
    user = "-" if owner is None else "{}:{}".format(*owner)
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(int(death_signal)), user]


def exited(pid: int) -> bool:
    """Whether our child ended. It is not reaped, so its id and its group stay its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def reap(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the group while its id is still taken, then collect the exit code."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def told(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
