"""Batches of request records as a process writes them to the stream."""

import time
from dataclasses import dataclass
from typing import Any

from app.domain.arrivals import Arrival, SourceEnd
from app.domain.telemetry import RecordBatch, RequestRecord, encode_batch

MS, SECOND, DAY = 1_000_000, 1_000_000_000, 86_400_000_000_000
NOON = 1_795_176_000_000_000_000
"""2026-11-20, 12:00 UTC, in ns since 1970."""


def record(started_at_ns: int = NOON, **given: Any) -> RequestRecord:
    """A request like many, but for what is given."""
    usual = {
        "latency_ns": 2 * MS,
        "method": "POST",
        "route": "/api/v1/price",
        "status": 200,
        "sent_bytes": 345,
        "client": "192.0.2.7",
        "key_id": "key_1",
        "user_id": "u-1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "sampled": False,
    }
    return RequestRecord(started_at_ns=started_at_ns, **usual | given)


@dataclass
class Source:
    """Numbers its records from 1 on, as a process that answers requests does."""

    name: str = "api-1"
    process_id: int = 4711
    given: int = 0
    answered_ns: int = 0

    def batch(self, *records: RequestRecord) -> RecordBatch:
        first, before = self.given + 1, self.answered_ns
        self.given += len(records)
        self.answered_ns = records[-1].started_at_ns + records[-1].latency_ns
        return RecordBatch(self.name, self.process_id, first, records, before)

    def arrival(self, *records: RequestRecord, arrived_ms: int | None = None) -> Arrival:
        """A batch that comes a second after its last request."""
        batch = self.batch(*records)
        return Arrival(records[-1].started_at_ns // MS + 1000 if arrived_ms is None else arrived_ms, batch)

    def end(self, arrived_ms: int | None = None) -> Arrival:
        return Arrival(time.time_ns() // MS if arrived_ms is None else arrived_ms, SourceEnd(self.name, self.given))


def fields_of(batch: RecordBatch) -> dict[str, Any]:
    """The stream entry of a batch."""
    return {"source": batch.source, "first": batch.first, "count": len(batch.records), "batch": encode_batch(batch)}
