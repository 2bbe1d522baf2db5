"""What was answered in every second, of all processes of a load test: counts and latencies in hundredths of a ms."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from loadtests.checks import Outdated

READS, STALENESS = "/api/v1/price", "event to visible price"
"""The names of what limits are about: single quotes, and from an event until quotes show it."""


def bucket(ms: float) -> float:
    """Three digits at least: 0.01 ms below 10 ms, 0.1 below 100, 1 below a second, else 10."""
    if ms < 10:
        return round(ms, 2)
    return round(ms, 1) if ms < 100 else round(ms) if ms < 1000 else round(ms, -1)


class Tally:
    """Of one name in one second. `outdated` are those failures that are prices older than the limit allows."""

    def __init__(self, count: int = 0, failed: int = 0, outdated: int = 0, times: dict[int, int] | None = None) -> None:
        self.count, self.failed, self.outdated = count, failed, outdated
        self.times = Counter(times or {})

    def add(self, ms: float, problem: BaseException | None) -> None:
        self.count += 1
        self.failed += problem is not None
        self.outdated += isinstance(problem, Outdated)
        self.times[round(bucket(ms) * 100)] += 1

    def update(self, other: "Tally") -> None:
        self.count += other.count
        self.failed += other.failed
        self.outdated += other.outdated
        self.times.update(other.times)

    def ms(self, share: float) -> float | None:
        """The latency that this share of them did not exceed; None where there are none."""
        left = max(1, -int(-share * self.count // 1))
        for hundredths in sorted(self.times):
            left -= self.times[hundredths]
            if left <= 0:
                return hundredths / 100
        return None


class Record:
    """One per process. A worker's goes to the master with each report, as `taken` has it, and is added there."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[str, Tally]] = {}

    def note(self, name: str, response_time: float, exception: BaseException | None, **_: Any) -> None:
        """A listener to Locust's requests. `response_time` is in ms."""
        self._tally(int(time.time()), name).add(response_time, exception)

    def taken(self) -> dict[int, dict[str, list[Any]]]:
        """All of it in plain types, which is forgotten here."""
        seconds, self._seconds = self._seconds, {}
        return {
            second: {name: [t.count, t.failed, t.outdated, dict(t.times)] for name, t in names.items()}
            for second, names in seconds.items()
        }

    def put(self, taken: dict[int, dict[str, list[Any]]]) -> None:
        for second, names in taken.items():
            for name, fields in names.items():
                self._tally(second, name).update(Tally(*fields))

    def forget(self) -> None:
        self._seconds = {}

    def names(self) -> list[str]:
        return sorted({name for names in self._seconds.values() for name in names})

    def whole(self, names: Iterable[str]) -> Tally:
        """All seconds of these names together."""
        whole = Tally()
        for second in self._seconds.values():
            for name in names:
                if name in second:
                    whole.update(second[name])
        return whole

    def seconds(self, name: str) -> Iterator[tuple[int, Tally]]:
        """Every second between the first and the last, also those in which nothing was answered."""
        if self._seconds:
            for second in range(min(self._seconds), max(self._seconds) + 1):
                yield second, self._seconds.get(second, {}).get(name) or Tally()

    def _tally(self, second: int, name: str) -> Tally:
        names = self._seconds.setdefault(second, {})
        if name not in names:
            names[name] = Tally()
        return names[name]
