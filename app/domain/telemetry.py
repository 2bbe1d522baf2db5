"""What is kept of every request that was answered: for bills, audits and graphs.

A process that answers is a *source*: it numbers its requests from 1 on, without gaps, so that whoever keeps the records
sees by the numbers alone what is missing, and what came twice.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

MOST_RECORDS = 500
"""Records in a batch, at most: for operations on more numpy gives up Python's lock, and whoever answers requests has to
give it back."""


class RequestRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One answered request. Empty text where something is not known."""

    started_at_ns: int
    """Since 1970, UTC."""
    latency_ns: int
    method: str
    route: str
    """The template, such as /api/v1/tasks/{task_id}; `unmatched` where no route fits."""
    status: int
    sent_bytes: int
    """Of the answer's body."""
    client: str
    """Its address: IPv4 or IPv6."""
    key_id: str
    """Which API key it came with; never the key."""
    user_id: str
    """What the client said in X-User-ID."""
    trace_id: str
    """32 hex digits."""
    sampled: bool
    """Whether there is such a trace to look at."""


class RecordBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Records of one source in their order; the first one's number is `first`, and each next one's is one more."""

    source: str
    """Unique among all processes that ever answered."""
    process_id: int
    first: int
    records: Sequence[RequestRecord]
    answered_before_ns: int = 0
    """When the request before the first one was answered (its start and its latency), ns since 1970; 0 before the
    first of all. Graphs have points of whole ms: so a batch alone tells whether it shares one with the batch before."""


_NO_TRACE = "0" * 32

Asked = tuple[str, str, int, str, str, str, bool]
"""What many requests have in common: method, route, status, client, key id, user id, and whether they are sampled."""


class _Columns(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A batch as it is written: what many records share once, the rest as columns of little-endian integers. The tag
    is the number of this form: a batch that waits on a disk or in a stream may be read by another release."""

    source: str
    process_id: int
    first: int
    answered_before_ns: int
    asked: list[Asked]
    asked_of: bytes
    """By record, 16 bits: which of `asked`."""
    started_at_ns: bytes
    """64 bits each, as the next two."""
    latency_ns: bytes
    sent_bytes: bytes
    trace_ids: bytes
    """16 bytes each."""


_decode = msgspec.msgpack.Decoder(_Columns).decode
_encode = msgspec.msgpack.Encoder().encode


def encode_batch(batch: RecordBatch) -> bytes:
    """As it is written to the stream."""
    asked: dict[Asked, int] = {}
    asked_of = [
        asked.setdefault((r.method, r.route, r.status, r.client, r.key_id, r.user_id, r.sampled), len(asked))
        for r in batch.records
    ]
    return encode_columns(
        batch.source,
        batch.process_id,
        batch.first,
        batch.answered_before_ns,
        list(asked),
        np.array(asked_of, np.uint16),
        np.array([r.started_at_ns for r in batch.records], np.int64),
        np.array([r.latency_ns for r in batch.records], np.int64),
        np.array([r.sent_bytes for r in batch.records], np.uint64),
        bytes.fromhex("".join(r.trace_id or _NO_TRACE for r in batch.records)),
    )


def encode_columns(
    source: str,
    process_id: int,
    first: int,
    answered_before_ns: int,
    asked: list[Asked],
    asked_of: npt.NDArray[np.uint16],
    started_at_ns: npt.NDArray[np.int64],
    latency_ns: npt.NDArray[np.int64],
    sent_bytes: npt.NDArray[np.uint64],
    trace_ids: bytes,
) -> bytes:
    """A batch that is there as columns: for each record its place in `asked`, and what else it says; a trace id has 16
    bytes. About 42 bytes per record; compressed it would be little smaller, for twice the processor time."""
    return _encode(
        _Columns(
            source,
            process_id,
            first,
            answered_before_ns,
            asked,
            asked_of.astype("<u2").tobytes(),
            started_at_ns.astype("<i8").tobytes(),
            latency_ns.astype("<i8").tobytes(),
            sent_bytes.astype("<i8").tobytes(),
            trace_ids,
        )
    )


def decode_batch(data: bytes) -> RecordBatch:
    """Raises ValueError where this is no batch."""
    try:
        columns = _decode(data)
        asked_of = np.frombuffer(columns.asked_of, "<u2").tolist()
        numbers = [
            np.frombuffer(column, "<i8").tolist()
            for column in (columns.started_at_ns, columns.latency_ns, columns.sent_bytes)
        ]
        trace_ids = columns.trace_ids.hex()
        if {len(column) for column in numbers} != {len(asked_of)} or len(trace_ids) != 32 * len(asked_of):
            raise ValueError("its columns differ in length")
        records = [
            RequestRecord(
                started, latency, method, route, status, sent, client, key_id, user_id,
                trace_id if (trace_id := trace_ids[at : at + 32]) != _NO_TRACE else "", sampled,
            )
            for (method, route, status, client, key_id, user_id, sampled), started, latency, sent, at in zip(
                map(columns.asked.__getitem__, asked_of), *numbers, range(0, len(trace_ids), 32), strict=True
            )
        ]  # fmt: skip
    except (msgspec.DecodeError, IndexError, ValueError) as error:
        raise ValueError(f"no batch of records: {error}") from error
    return RecordBatch(columns.source, columns.process_id, columns.first, records, columns.answered_before_ns)
