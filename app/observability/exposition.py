"""What a scrape gets: the metrics of every process that counts in this folder, added up.

Adding up takes tens of milliseconds of processor time. A process of its own does it (`exporter`), so that a scrape of
the API costs its other requests nothing; only where there is none, the API does it itself, in a thread.
"""

import asyncio
import struct
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.observability.catalogue import SEATS
from app.observability.seats import Seats

SOCKET = "exporter.sock"
"""In the folder of the metrics: whoever connects is told everything."""

_PATIENCE_S = 5.0
_ATTEMPTS = 5
_END = b"# EOF\n"

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Together(Collector):
    """The files of all seats."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats

    def collect(self) -> Iterable[Metric]:
        """Whoever takes a dead process' seat begins its gauges anew, perhaps after they were listed here: such a file
        is gone, or empty as yet, and all are listed and read again."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(FileNotFoundError, struct.error):
                return self._read()
        return self._read()

    def _read(self) -> Iterable[Metric]:
        metrics: Iterable[Metric] = MultiProcessCollector.merge(self._seats.files())  # type: ignore[no-untyped-call]
        return metrics


def exposition(seats: Seats | None = SEATS) -> bytes:
    """Everything, in Prometheus' text format. Reads every process' files: not for an event loop. Where no folder is
    named, this process' own metrics alone."""
    if seats is None:
        return generate_latest(REGISTRY) + _END
    registry = CollectorRegistry()
    registry.register(_Together(seats))
    return generate_latest(registry) + _END


async def asked_for() -> bytes:
    """The same, for an event loop: from the exporter, if there is one."""
    if SEATS is not None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(SEATS.folder / SOCKET)
                try:
                    told = await reader.read(-1)
                finally:
                    writer.close()
            if told.endswith(_END):
                return told
        except (OSError, TimeoutError):
            pass
    return await asyncio.to_thread(exposition)
