"""Seats: whose files a process counts in.

Several processes count in files of one folder, and a scrape adds the files up. Files by process id would gather
without end, and deleting those of the dead would make counters run backwards. So a process takes a *seat*: the
lowest number that no living process has, held by a lock which the kernel takes back however the process ends. Whoever
takes a seat next goes on counting in its files. There are never more seats than there were processes at one time.

The lock is POSIX's: it belongs to one process, a fork does not inherit it, and it also works between containers
that share the folder.
"""

import fcntl
import itertools
import os
from pathlib import Path

_LOCKS = "seats"


class Seats:
    """The seats of one folder, as one process sees them. The lock of seat n is on byte n of one file, which a process
    must never open twice: closing either would give up its seat."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._mine: int | None = None
        os.register_at_fork(after_in_child=self._leave)

    def mine(self) -> int:
        """This process' seat, taken if it has none yet."""
        if self._mine is None:
            self._mine = self._take()
        return self._mine

    def taken(self, seat: int) -> bool:
        """Whether a living process has this seat."""
        if seat == self._mine:
            return True
        try:  # shared, so that several who ask at once do not take each other for living processes
            fcntl.lockf(self._locks(), fcntl.LOCK_SH | fcntl.LOCK_NB, 1, seat)
        except OSError:
            return True
        fcntl.lockf(self._locks(), fcntl.LOCK_UN, 1, seat)
        return False

    def files(self) -> list[str]:
        """What a scrape adds up: what every process has counted, and the gauges of those that live."""
        seats = {path: int(path.stem.rpartition("_")[2]) for path in self.folder.glob("*.db")}
        living = {seat for seat in set(seats.values()) if self.taken(seat)}
        wanted = [path for path in seats if seats[path] in living or not path.name.startswith("gauge_")]
        return [str(path) for path in wanted if _is_begun(path)]

    def _take(self) -> int:
        for seat in itertools.count():
            try:
                fcntl.lockf(self._locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, seat)
            except OSError:
                continue
            for gauge in self.folder.glob(f"gauge_*_{seat}.db"):
                gauge.unlink()  # of who sat here before
            return seat
        raise AssertionError

    def _locks(self) -> int:
        if self._file is None:
            self._file = os.open(self.folder / _LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    def _leave(self) -> None:
        """In a forked child: the seat is its parent's."""
        if self._file is not None:
            os.close(self._file)
        self._file = self._mine = None


def _is_begun(file: Path) -> bool:
    """Whether it has more than a name; a gauge's may be gone by now."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False
