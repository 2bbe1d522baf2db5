"""A batch of records comes out as it went in; what is none is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.telemetry import MOST_RECORDS, RecordBatch, RequestRecord, decode_batch, encode_batch

numbers = st.integers(0, 2**62)
texts = st.text(max_size=20)
records = st.builds(
    RequestRecord,
    started_at_ns=numbers, latency_ns=numbers, method=texts, route=texts, status=st.integers(100, 599),
    sent_bytes=numbers, client=texts, key_id=texts, user_id=texts,
    trace_id=st.just("") | st.from_regex(r"[0-9a-e]{31}f", fullmatch=True), sampled=st.booleans(),
)  # fmt: skip
batches = st.builds(
    RecordBatch, source=texts, process_id=numbers, first=numbers, records=st.lists(records, max_size=30),
    answered_before_ns=numbers,
)  # fmt: skip


@given(batches)
def test_a_batch_comes_out_as_it_went_in(batch: RecordBatch) -> None:
    assert decode_batch(encode_batch(batch)) == batch


@given(batches, st.data())
def test_what_was_cut_is_no_batch(batch: RecordBatch, data: st.DataObject) -> None:
    encoded = encode_batch(batch)
    with pytest.raises(ValueError, match="no batch of records"):
        decode_batch(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_a_batch_of_another_releases_form_is_refused_and_not_misread() -> None:
    form, *columns = msgspec.msgpack.decode(encode_batch(RecordBatch("source", 1, 1, [])))
    assert decode_batch(msgspec.msgpack.encode([form, *columns])).source == "source"
    with pytest.raises(ValueError, match="no batch of records"):
        decode_batch(msgspec.msgpack.encode([form + 1, *columns]))


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_batch_or_a_value_error(data: bytes) -> None:
    try:
        decode_batch(data)
    except ValueError:
        return


def test_a_full_batch_of_requests_that_are_alike_is_small() -> None:
    like = RequestRecord(1, 2, "POST", "/api/v1/price", 200, 3, "192.0.2.1", "kEyId", "user", "a" * 32, False)
    assert len(encode_batch(RecordBatch("source", 1, 1, [like] * MOST_RECORDS))) < 43 * MOST_RECORDS
