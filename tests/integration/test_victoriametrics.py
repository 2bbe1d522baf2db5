"""Records of requests in a real VictoriaMetrics: no point is lost to another, and none is there twice."""

import http.server
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.adapters.victoriametrics import BYTES, LANES, LATENCY, VictoriaMetrics
from app.domain.arrivals import Arrival
from app.domain.telemetry import RecordBatch
from app.errors import InvalidInput, Unavailable
from app.pipeline.sinks import Sink
from tests.support.proxy import Proxy, proxy_to
from tests.support.records import DAY, MS, NOON, SECOND, Source, record
from tests.support.sink_contract import SinkContract
from tests.support.victoriametrics import Victoria, victoria_metrics

KEPT_DAYS = 400
DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/dashboards/telemetry.json"
_names = (f"api-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def victoria() -> Iterator[Victoria]:
    with victoria_metrics() as victoria:
        yield victoria
        assert victoria.figure("vm_rows_invalid_total") == 0, "everything that was written could be read"


@pytest.fixture
def sink(victoria: Victoria) -> Iterator[VictoriaMetrics]:
    sink = VictoriaMetrics(victoria.url, timeout_s=10, kept_days=KEPT_DAYS)
    yield sink
    sink.close()


@pytest.fixture
def source() -> Source:
    return Source(next(_names))


def points(victoria: Victoria, name: str, source: Source) -> list[tuple[int, float]]:
    """When (ms), and the value; in order."""
    found = victoria.series(f'{name}{{source="{source.name}"}}')
    return sorted(pair for each in found for pair in zip(each["timestamps"], each["values"], strict=True))


def test_a_request_is_a_point_of_latency_and_one_of_bytes(
    sink: VictoriaMetrics, victoria: Victoria, source: Source
) -> None:
    sink.write([source.arrival(record(NOON, latency_ns=1_234_567, sent_bytes=89, key_id=""))])
    metric = {
        "source": source.name, "method": "POST", "route": "/api/v1/price", "status": "200", "client": "192.0.2.7",
        "user_id": "u-1",
    }  # fmt: skip
    at = [NOON // MS + 1]
    (latency,) = victoria.series(f'{LATENCY}{{source="{source.name}"}}')
    (sent,) = victoria.series(f'{BYTES}{{source="{source.name}"}}')
    assert latency == {"metric": {"__name__": LATENCY, **metric}, "values": [0.001234567], "timestamps": at}
    assert sent == {"metric": {"__name__": BYTES, **metric}, "values": [89], "timestamps": at}


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=4, max_size=4)
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_label_that_comes_out_as_it_went_in(
    texts: list[str], sink: VictoriaMetrics, victoria: Victoria
) -> None:
    source = Source(next(_names))
    route, client, key, user = texts
    sink.write([source.arrival(record(route=route, client=client, key_id=key, user_id=user))])
    (found,) = victoria.series(f'{LATENCY}{{source="{source.name}"}}')
    assert [found["metric"][name] for name in ("route", "client", "key_id", "user_id")] == texts


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    pauses=st.lists(st.sampled_from([0, 40_000, MS, 3 * MS]), min_size=48, max_size=48),
    users=st.lists(st.sampled_from(["u-1", "u-2"]), min_size=48, max_size=48),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_requests_of_one_ms_have_points_of_their_own_whichever_batches_they_are_in(
    sizes: list[int], pauses: list[int], users: list[str], sink: VictoriaMetrics, victoria: Victoria
) -> None:
    source = Source(next(_names))
    times = list(itertools.accumulate(pauses, initial=NOON))
    arrivals = []
    for size in sizes:
        numbers = range(source.given, source.given + size)
        # The value tells requests apart.
        some = [record(times[n], sent_bytes=n, user_id=users[n]) for n in numbers]
        arrivals.append(source.arrival(*some))
    for arrival in arrivals:
        sink.write([arrival])
    sink.write(arrivals[::-1])  # all of them again, and in other company
    expected = [((times[n] + 2 * MS) // MS, n) for n in range(source.given)]
    assert points(victoria, BYTES, source) == expected


def test_as_many_as_a_process_answers_in_a_ms_have_room_each_in_a_batch_of_its_own(
    sink: VictoriaMetrics, victoria: Victoria, source: Source
) -> None:
    sink.write([source.arrival(record(NOON, sent_bytes=n)) for n in range(LANES)])
    assert sorted(value for _, value in points(victoria, BYTES, source)) == list(range(LANES))


def test_one_who_asks_seldom_has_one_series(sink: VictoriaMetrics, victoria: Victoria, source: Source) -> None:
    for n in range(10):
        sink.write([source.arrival(record(NOON + n * SECOND))])
    assert len(victoria.series(f'{LATENCY}{{source="{source.name}"}}')) == 1


def test_a_clock_of_another_year_is_placed_where_it_arrived(
    sink: VictoriaMetrics, victoria: Victoria, source: Source
) -> None:
    sink.write([source.arrival(record(0), record(NOON + 3000 * DAY), arrived_ms=NOON // MS)])
    assert [at for at, _ in points(victoria, BYTES, source)] == [NOON // MS + 2] * 2


def test_the_end_of_a_source_is_nothing_to_draw(sink: VictoriaMetrics, source: Source) -> None:
    sink.write([source.end()])


def test_a_wrong_address_is_not_taken_for_the_fault_of_what_was_sent(victoria: Victoria, source: Source) -> None:
    elsewhere = VictoriaMetrics(victoria.url + "/elsewhere", timeout_s=5, kept_days=KEPT_DAYS)
    with pytest.raises(Unavailable, match="/health answers"):
        elsewhere.write([source.arrival(record())])
    elsewhere.close()


class _Gate(http.server.BaseHTTPRequestHandler):
    """What stands before a server and answers for it."""

    answers: ClassVar[tuple[int, str | None]]

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        while size := int(self.rfile.readline(), 16):  # chunks
            self.rfile.read(size + 2)
        self.rfile.readline()
        status, retry_after = self.answers
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "error", "retry_after_s"),
    [
        ((400, None), InvalidInput, None),
        ((413, None), InvalidInput, None),
        ((401, None), Unavailable, 1),
        ((404, None), Unavailable, 1),
        ((429, "7"), Unavailable, 7),
        ((500, None), Unavailable, 1),
        ((503, "Sun, 22 Nov 2026 00:00:00 GMT"), Unavailable, 1),
    ],
)
def test_what_will_never_be_taken_is_told_from_what_may_pass(
    answers: tuple[int, str | None], error: type[Exception], retry_after_s: int | None, source: Source
) -> None:
    gate = type("Gate", (_Gate,), {"answers": answers})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sink = VictoriaMetrics(f"http://127.0.0.1:{server.server_port}", timeout_s=5, kept_days=KEPT_DAYS)
        with pytest.raises(error) as raised:
            sink.write([source.arrival(record())])
        sink.close()
        server.shutdown()
    assert getattr(raised.value, "retry_after_s", None) == retry_after_s


def test_one_that_hangs_is_not_waited_for(victoria: Victoria, source: Source) -> None:
    impatient = VictoriaMetrics(victoria.url, timeout_s=0.2, kept_days=KEPT_DAYS)
    victoria.tell(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="not available") as raised:
            impatient.write([source.arrival(record())])
        assert raised.value.upstream == "victoriametrics"
    finally:
        victoria.tell(signal.SIGCONT)
        impatient.close()


class _Arriving:
    """Batches as they come out of the stream."""

    def __init__(self, sink: VictoriaMetrics) -> None:
        self._sink = sink

    def write(self, items: Sequence[RecordBatch]) -> None:
        self._sink.write([Arrival(time.time_ns() // MS, batch) for batch in items])


class _End:
    def __init__(self, victoria: Victoria, proxy: Proxy) -> None:
        self._victoria, self._proxy = victoria, proxy
        self.sinks: list[VictoriaMetrics] = []

    def open(self) -> Sink[RecordBatch]:
        self.sinks.append(VictoriaMetrics(f"http://127.0.0.1:{self._proxy.port}", timeout_s=2, kept_days=KEPT_DAYS))
        return _Arriving(self.sinks[-1])

    def written(self) -> Counter[str]:
        return Counter({each["metric"]["user_id"]: len(each["values"]) for each in self._victoria.series(LATENCY)})

    @contextmanager
    def away(self) -> Iterator[None]:
        self._proxy.cut()
        yield
        self._proxy.heal()


class TestVictoriaMetrics(SinkContract):
    @pytest.fixture
    def end(self) -> Iterator[_End]:  # type: ignore[override]
        with victoria_metrics() as victoria, proxy_to(victoria.port) as proxy:
            end = _End(victoria, proxy)
            yield end
            for sink in end.sinks:
                sink.close()


def test_every_panel_that_asks_it_tells_keys_and_users_apart(
    sink: VictoriaMetrics, victoria: Victoria, source: Source
) -> None:
    now = time.time_ns()
    busy = [record(now - nth * SECOND, key_id="busy", user_id="u-busy") for nth in range(1, 21)]
    limited = [record(now - nth * SECOND, key_id="limited", user_id="u-limited", status=429) for nth in range(1, 6)]
    sink.write([source.arrival(*sorted([*busy, *limited], key=lambda each: each.started_at_ns))])
    panels = {
        panel["title"]: panel["targets"][0]["expr"]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        if panel.get("datasource", {}).get("uid") == "victoriametrics"
    }
    assert len(panels) == 3
    found = {title: victoria.now(query, "1m") for title, query in panels.items()}
    by_key = {each["metric"]["key_id"]: each["value"] for each in found["Requests by key, the ten busiest"]}
    assert (by_key["busy"], by_key["limited"]) == (pytest.approx(20 / 60), pytest.approx(5 / 60))
    (refused,) = (each for each in found["Answered with 429, by key"] if each["metric"]["key_id"] == "limited")
    assert refused["value"] == pytest.approx(5 / 60)
    assert "busy" not in {each["metric"].get("key_id") for each in found["Answered with 429, by key"]}
    users = {each["metric"]["user_id"] for each in found["Latency by user, the ten slowest, p99"]}
    assert {"u-busy", "u-limited"} <= users
