"""What requests leave behind: counted as if one by one, written as JSON, and nothing lost at the end."""

import json
import os
import resource
import sys
import threading
import time
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.observability import metrics
from app.observability.access_records import LONGEST_US
from app.observability.notes import Kind
from app.observability.requests import MAX_BACKLOG, RequestLog
from app.observability.tracing import RequestTrace
from tests.support.waiting import eventually

BUCKETS = (0.001, 0.01, 0.1)
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

seconds = st.one_of(st.sampled_from([0.0, *BUCKETS, 0.1000001, 99.0]), st.floats(0, 1))


def histogram() -> tuple[Histogram, CollectorRegistry]:
    registry = CollectorRegistry()
    return Histogram("duration_seconds", "Any.", ["route"], buckets=BUCKETS, registry=registry), registry


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): round(sample.value, 6)
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(seconds, min_size=1, max_size=50))
def test_many_at_once_are_counted_as_one_by_one(values: list[float]) -> None:
    (together, of_together), (alone, of_alone) = histogram(), histogram()
    metrics.observe_many(together.labels("/price"), values)
    for value in values:
        alone.labels("/price").observe(value)
    assert samples(of_together) == samples(of_alone)


@pytest.fixture(autouse=True)
def _access_records_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "access")


def quotes() -> float:
    return metrics.quotes.labels("near_cache")._value.get()  # type: ignore[no-any-return]


def requests(route: str) -> float:
    prefix = f'pricing_http_request_duration_seconds_count{{method="POST",route="{route}",status="200"}} '
    lines = generate_latest().decode().splitlines()
    return sum(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def traceparent(trace_id: str = TRACE_ID) -> bytes:
    return RequestTrace(trace_id, SPAN_ID, None, False).traceparent


def numbered(process: int, n: int) -> str:
    return f"{process:016x}{n:016x}"


def note(log: RequestLog, route: str = "/api/v1/price") -> None:
    log.note(time.perf_counter(), Kind("POST", route, 200), 0.0012345, traceparent(), key_id="kEyId")


def test_a_line_is_json_with_the_fields_of_every_log_line_and_of_a_request(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    log = RequestLog("api")
    note(log)
    log.start()
    log.stop()
    (line,) = capfdbinary.readouterr().err.splitlines()
    entry = json.loads(line)
    assert abs(datetime.fromisoformat(entry.pop("timestamp")).timestamp() - time.time()) < 60
    assert entry == {
        "method": "POST", "route": "/api/v1/price", "status": 200, "ms": 1.234, "trace_id": TRACE_ID,
        "span_id": SPAN_ID, "key_id": "kEyId", "process": "api",
        "event": "request", "level": "info", "logger": "access",
    }  # fmt: skip


durations = st.one_of(st.sampled_from([0.0, 4.99e-7, 0.9999999, 1.0, 59.9, 999.999999, 1e5]), st.floats(0, 1200))


@given(
    st.lists(st.tuples(durations, st.floats(-2, 0), st.sampled_from(["/a", "/b%s"]), st.sampled_from(["", "kEyId"])))
)
def test_of_whatever_is_answered_together_each_line_says_its_own(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[float, float, str, str]]
) -> None:
    now, moment = time.time(), time.perf_counter()
    file = tmp_path_factory.mktemp("log") / "log"
    with pytest.MonkeyPatch.context() as patch, file.open("w") as written:
        patch.setattr(sys, "stderr", written)
        log = RequestLog("api")
        for n, (took, ago, route, key_id) in enumerate(asked):
            log.note(moment + ago, Kind("POST", route, 200), took, traceparent(numbered(7, n)), key_id=key_id)
        log.start()
        log.stop()
    entries = {int(entry["trace_id"][16:], 16): entry for entry in map(json.loads, file.read_text().splitlines())}
    assert set(entries) == set(range(len(asked)))
    for n, (took, ago, route, key_id) in enumerate(asked):
        entry = entries[n]
        assert (entry["route"], entry["key_id"]) == (route, key_id)
        assert entry["ms"] == pytest.approx(min(took * 1000, LONGEST_US / 1000), abs=0.0011)
        assert datetime.fromisoformat(entry["timestamp"]).timestamp() == pytest.approx(now + ago, abs=0.1)


def test_nothing_is_lost_or_written_twice_up_to_the_end(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    before = quotes()
    log = RequestLog("api")
    log.start()

    def answer(process: int) -> None:
        for n in range(2_000):
            trace_id = numbered(process, n)
            log.note(time.perf_counter(), Kind("POST", "/noted", 200), 0.001, traceparent(trace_id), n % 2)

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.stop()
    written = [json.loads(line)["trace_id"] for line in capfdbinary.readouterr().err.splitlines()]
    assert sorted(written) == sorted(numbered(process, n) for process in range(3) for n in range(2_000))
    assert requests("/noted") == 6_000
    assert quotes() - before == 3_000


def test_where_no_lines_are_wanted_requests_are_counted_all_the_same(
    capfdbinary: pytest.CaptureFixture[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "access")
    log = RequestLog("api")
    note(log, "/silent")
    log.start()
    log.stop()
    assert capfdbinary.readouterr().err == b""
    assert requests("/silent") == 1


def test_a_log_that_cannot_be_written_does_not_end_the_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # every write fails: no space left
        monkeypatch.setattr(sys, "stderr", TextIOWrapper(full))
        log = RequestLog("api")
        log.start()
        for n in range(2):
            note(log, "/full")
            eventually(lambda: requests("/full") == n + 1)  # noqa: B023
        log.stop()
        monkeypatch.undo()


def test_a_disk_that_is_full_for_a_while_costs_one_line_that_is_torn(tmp_path: Path) -> None:
    """A file that may not grow beyond a size takes a part of what is written."""
    before, limits = dropped(), resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "log"
    with pytest.MonkeyPatch.context() as patch, file.open("a") as written:
        patch.setattr(sys, "stderr", written)
        log = RequestLog("api")
        log.start()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            for n in range(10):
                note(log, "/torn")
                if n > 5:
                    eventually(lambda n=n: requests("/torn") == n + 1)  # type: ignore[misc]
            eventually(lambda: dropped() > before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for _ in range(2):
            note(log, "/mended")
        log.stop()
    *kept, torn, first, second = file.read_text().splitlines()
    assert [json.loads(line)["route"] for line in (*kept, first, second)] == ["/torn"] * len(kept) + ["/mended"] * 2
    assert (torn[:1], torn[-1:]) != ("{", "}")
    assert len(kept) + dropped() - before == 10


def dropped() -> float:
    return metrics.access_records_dropped._value.get()  # type: ignore[no-any-return]


def test_a_log_that_nobody_reads_holds_up_neither_counting_nor_the_end_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pipe takes 64 kB, and then nothing."""
    before, count = dropped(), MAX_BACKLOG // 100
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stderr", TextIOWrapper(full, write_through=True))
        log = RequestLog("api")
        log.start()
        for _ in range(count):
            note(log, "/blocked")
        eventually(lambda: requests("/blocked") == count)
        eventually(lambda: dropped() > before)
        log.stop()
        monkeypatch.undo()
        full.close()
        written = [json.loads(line)["route"] for line in pipe]
    assert set(written) == {"/blocked"}
    assert 0 < len(written) < count
    assert dropped() - before < count
