"""What an import shows: bars while it runs, the refused rows, and a summary."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from app.catalog.loading import ImportResult
from app.catalog.merging import Refusal
from app.errors import InvalidInput


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage, for `Listener.progress`; none where the console is not a terminal."""
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        started: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in started:
                started[stage] = bars.add_task(stage)
            bars.update(started[stage], completed=done, total=total)

        yield show


class Refusals:
    """Keeps the first `shown` refused rows, and writes all of them to a CSV file if there is one."""

    def __init__(self, path: Path | None, shown: int) -> None:
        self._path, self._shown = path, shown
        self.first: list[Refusal] = []
        self.count = 0

    def __enter__(self) -> "Refusals":
        try:
            self._file = self._path.open("w", newline="", encoding="utf-8") if self._path else None
        except OSError as error:
            raise InvalidInput(f"refused rows cannot be written to {self._path}: {error.strerror}") from None
        self._writer = csv.writer(self._file) if self._file else None
        if self._writer:
            self._writer.writerow(Refusal._fields)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, refusal: Refusal) -> None:
        self.count += 1
        if len(self.first) < self._shown:
            self.first.append(refusal)
        if self._writer:
            self._writer.writerow(refusal)

    def lines(self) -> Iterator[str]:
        """One line per row that is shown, as compilers write them, and how many are not."""
        for refusal in self.first:
            yield f"{refusal.part}:{refusal.line}: {refusal.reason}"
        if self.count > len(self.first):
            where = f"see {self._path}" if self._path else "--errors FILE keeps them all"
            yield f"… and {self.count - len(self.first):,} more: {where}"


def summary(result: ImportResult, seconds: float) -> Iterator[str]:
    """Lines: what became of each part's rows, and of the prices."""
    width = max((len(part.name) for part in result.parts), default=0)
    heads = ("read", "new", "changed", "unchanged", "refused")
    yield " " * width + "".join(f"{head:>11}" for head in heads)
    for part in result.parts:
        yield f"{part.name:<{width}}" + "".join(f"{getattr(part, head):>11,}" for head in heads)
    yield f"{result.sheets:,} prices computed and stored; {seconds:.1f} s in all."
