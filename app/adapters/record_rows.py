"""Rows of request_records in PostgreSQL's binary format, as COPY takes them."""

import struct
from collections.abc import Iterable
from functools import lru_cache

from app.domain.telemetry import RecordBatch

COLUMNS = (
    "started_at", "latency_ns", "sequence", "sent_bytes", "source_key", "status", "sampled", "trace_id",
    "method", "route", "client", "key_id", "user_id",
)  # fmt: skip

_EPOCH_US = 946_684_800_000_000
"""2000-01-01, from which PostgreSQL counts, in us since 1970."""

# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS: a row is its number of fields (int2),
# then per field its length (int4) and its value.
_pack = struct.Struct(">h iq iq iq iq ii ih i?").pack
_NO_TRACE = struct.pack(">i", -1)
_TRACE_LENGTH = struct.pack(">i", 16)


def rows_of(batch: RecordBatch, source_key: int, started_us: Iterable[int]) -> bytes:
    """The rows of a batch whose requests began at these us since 1970. Raises ValueError or struct.error for what no
    process of ours would write."""
    rows: list[bytes] = []
    for sequence, (record, started) in enumerate(zip(batch.records, started_us, strict=True), batch.first):
        head = _pack(
            len(COLUMNS),
            8, started - _EPOCH_US,
            8, record.latency_ns,
            8, sequence,
            8, record.sent_bytes,
            4, source_key,
            2, record.status,
            1, record.sampled,
        )  # fmt: skip
        trace = _TRACE_LENGTH + bytes.fromhex(record.trace_id) if record.trace_id else _NO_TRACE
        rows += head, trace, _texts(record.method, record.route, record.client, record.key_id, record.user_id)
    return b"".join(rows)


@lru_cache(65_536)
def _texts(*texts: str) -> bytes:
    """Many requests have them in common."""
    return b"".join(map(_field, texts))


def _field(text: str) -> bytes:
    """PostgreSQL's text holds every character but NUL."""
    value = text.replace("\0", "\ufffd").encode()
    return struct.pack(">i", len(value)) + value
