"""What is kept of every request, whatever dies or is away: each once by its number, and what is missing is stated."""

import http.client
import itertools
import json
import os
import signal
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
import redis

from tests.support.system import System, system_of_its_own
from tests.support.waiting import eventually

STREAM, WITNESS = "telemetry", "witness"


class Record(NamedTuple):
    started_at_ns: int
    latency_ns: int
    method: str
    route: str
    status: int
    sent_bytes: int
    client: str
    key_id: str
    user_id: str
    trace_id: str
    sampled: bool


def decoded(batch: bytes) -> list[Record]:
    form, _, _, _, _, asked, asked_of, started_at, latency, sent, traces = msgspec.msgpack.decode(batch)
    assert form == 1
    count = len(asked_of) // 2
    numbers = [struct.unpack(f"<{count}q", column) for column in (started_at, latency, sent)]
    columns = zip(struct.unpack(f"<{count}H", asked_of), *numbers, range(0, 16 * count, 16), strict=True)
    records = []
    for which, started_at_ns, latency_ns, sent_bytes, at in columns:
        method, route, status, client, key_id, user_id, sampled = asked[which]
        records.append(
            Record(started_at_ns, latency_ns, method, route, status, sent_bytes, client, key_id, user_id,
                   traces[at : at + 16].hex(), sampled)
        )  # fmt: skip
    return records


class Witness:
    """Reads the stream by a group of its own, so that nothing is trimmed before it has seen it."""

    def __init__(self, system: System) -> None:
        self._client = redis.Redis.from_url(system.broker_url)
        self._client.xgroup_create(STREAM, WITNESS, id="0", mkstream=True)
        self.numbers: dict[str, Counter[int]] = {}
        self.ends: dict[str, list[int]] = {}
        self.records: list[Record] = []

    def look(self) -> "Witness":
        while answer := self._client.xreadgroup(WITNESS, "one", {STREAM: ">"}, count=1000):
            entries: Any = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
            taken = [entry for many in entries for entry in (many[0] if isinstance(many[0], list) else many)]
            for stream_id, fields in taken:
                self._note(fields)
                self._client.xack(STREAM, WITNESS, stream_id)
        return self

    def _note(self, fields: dict[bytes, bytes]) -> None:
        source = fields[b"source"].decode()
        if b"ended" in fields:
            self.ends.setdefault(source, []).append(int(fields[b"ended"]))
            return
        records = decoded(fields[b"batch"])
        assert len(records) == int(fields[b"count"]) <= 512
        seen = self.numbers.setdefault(source, Counter())
        for number, record in enumerate(records, int(fields[b"first"])):
            if not seen[number]:
                self.records.append(record)
            seen[number] += 1

    def users(self) -> Counter[str]:
        return Counter(record.user_id for record in self.records if record.user_id)

    def gaps(self) -> dict[str, list[int]]:
        """The numbers that are missing, up to the last one that is known, by source."""
        last = {source: max([0, *numbers, *self.ends.get(source, ())]) for source, numbers in self.numbers.items()}
        missing = {
            source: [n for n in range(1, last[source] + 1) if n not in numbers]
            for source, numbers in self.numbers.items()
        }
        return {source: numbers for source, numbers in missing.items() if numbers}

    def close(self) -> None:
        self._client.close()


class Clients:
    """Several that ask without pause, each request by a user of its own; `answered` are those that were, `unsure` those
    whose connection broke."""

    def __init__(self, port: int) -> None:
        self._port, self._names = port, itertools.count()
        self.answered: list[str] = []
        self.unsure: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 200) -> None:
        """Wait until so many more were answered."""
        before = len(self.answered)
        eventually(lambda: len(self.answered) >= before + count, timeout_s=60)

    def _ask(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        while not self._stopping.wait(0.001):
            user = f"{client}-{next(self._names)}"
            try:
                connection.request("GET", "/healthz", headers={"X-User-ID": user})
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                self.answered.append(user)
            except (OSError, http.client.HTTPException):
                self.unsure.append(user)
                connection.close()
        connection.close()


def api_workers(system: System) -> list[int]:
    return [child.pid for child in psutil.Process(system.pids()["api"]).children()]


def spilling(system: System) -> list[int]:
    """The workers that have written to disk: those who are asked, which need not be all."""
    return [
        worker
        for worker in api_workers(system)
        if any(file.path.endswith(".spill") for file in psutil.Process(worker).open_files())
    ]


def spilled(system: System) -> int:
    return sum(path.stat().st_size for path in (system.data / "telemetry").glob("*.spill"))


def counted(system: System) -> dict[str, float]:
    """What the metrics say of records on their way."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    found = (line.rsplit(" ", 1) for line in lines if line.startswith("pricing_telemetry_"))
    return {name: float(value) for name, value in found}


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def house() -> Iterator[System]:
    with system_of_its_own("telemetry", "--workers", "2") as system:
        yield system


@pytest.fixture(scope="module")
def witness(house: System) -> Iterator[Witness]:
    witness = Witness(house)
    yield witness
    witness.close()


def test_every_request_leaves_one_record_that_says_who_asked_what(house: System, witness: Witness) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=20)
    body = json.dumps({"product_id": "P-100", "user_location": "NY"})
    trace_id = "5" * 32
    headers = {
        "Content-Type": "application/json", "X-User-ID": "Zo\xeb", "X-Forwarded-For": "198.51.100.1",
        "traceparent": f"00-{trace_id}-{'6' * 16}-01",
    }  # fmt: skip
    lengths = []
    for _ in range(2):  # the second one is answered at once
        connection.request("POST", "/api/v1/price", body, headers)
        lengths.append(len(connection.getresponse().read()))
    connection.request("GET", "/nowhere/4711", headers=headers)
    lengths.append(len(connection.getresponse().read()))
    connection.close()
    mine = eventually(lambda: len(of_trace(witness, trace_id)) == 3 and of_trace(witness, trace_id))
    assert [(r.method, r.route, r.status) for r in mine] == [
        ("POST", "/api/v1/price", 200), ("POST", "/api/v1/price", 200), ("GET", "unmatched", 404),
    ]  # fmt: skip
    assert [r.sent_bytes for r in mine] == lengths
    assert {r.client for r in mine} == {"127.0.0.1"}, "nobody is trusted to say otherwise"
    assert {r.user_id for r in mine} == {"Zoë"}
    assert all(r.sampled for r in mine)
    assert all(0 < r.latency_ns < 60_000_000_000 for r in mine)


def of_trace(witness: Witness, trace_id: str) -> list[Record]:
    return sorted(record for record in witness.look().records if record.trace_id == trace_id)


def test_while_redis_stands_still_records_go_to_disk_and_from_there_into_the_stream(
    house: System, witness: Witness
) -> None:
    with Clients(house.port) as clients:
        clients.more()
        with standing_still(house.pids()["broker"]):
            eventually(lambda: spilled(house), timeout_s=20)
            clients.more(500)
        clients.more()
    everybody = Counter(clients.answered)
    assert not clients.unsure
    eventually(lambda: witness.look().users() & everybody == everybody, timeout_s=60)
    eventually(lambda: spilled(house) == 0, timeout_s=20)
    assert witness.gaps() == {}
    books = counted(house)
    assert books['pricing_telemetry_published_total{came_from="spill"}'] > 0
    assert books["pricing_telemetry_unaccounted"] == 0
    assert {name: count for name, count in books.items() if "dropped" in name and count} == {}


def test_a_worker_that_leaves_has_told_everything(house: System, witness: Witness) -> None:
    before = set(api_workers(house))
    known = set(witness.look().ends)
    with Clients(house.port) as clients:
        clients.more()
        os.kill(house.pids()["api"], signal.SIGHUP)  # new workers take over from the old ones
        eventually(lambda: not before & set(api_workers(house)), timeout_s=60)
        clients.more()
    everybody = Counter(clients.answered)
    eventually(lambda: witness.look().users() & everybody == everybody, timeout_s=30)
    eventually(lambda: len(set(witness.look().ends) - known) == 2)
    assert witness.gaps() == {}


def test_what_a_killed_worker_had_not_sent_shows_as_a_gap_at_its_end(house: System, witness: Witness) -> None:
    witness.look()
    known = set(witness.ends)
    with Clients(house.port) as clients:
        clients.more()
        os.kill(api_workers(house)[0], signal.SIGKILL)
        eventually(lambda: set(witness.look().ends) - known, timeout_s=30)
        clients.more()
    (killed,) = set(witness.ends) - known
    everybody = Counter(clients.answered)
    survivors = {source for source in witness.numbers if source != killed}

    def all_else_is_there() -> bool:
        witness.look()
        missing = everybody - witness.users()
        return missing.total() <= len(witness.gaps().get(killed, [])) and not survivors & set(witness.gaps())

    eventually(all_else_is_there, timeout_s=30)
    gap = witness.gaps().get(killed, [])
    (end,) = witness.ends[killed]
    assert gap == list(range(end - len(gap) + 1, end + 1)), "only the end is missing"
    assert len(gap) < 200, "50 ms of four clients"


def stated(house: System, witness: Witness, clients: Clients, since: int) -> int:
    """How many requests are stated as lost, beyond those `since`, once nothing is spilled any more and of whoever was
    answered nobody is missing without being among them."""
    everybody = Counter(clients.answered)

    def lost() -> int:
        return sum(map(len, witness.look().gaps().values())) - since

    eventually(lambda: spilled(house) == 0 and lost() >= (everybody - witness.users()).total(), timeout_s=60)
    return lost()


def test_what_a_killed_worker_had_spilled_is_brought_home_by_the_living(house: System, witness: Witness) -> None:
    lost_before = sum(map(len, witness.look().gaps().values()))
    with Clients(house.port) as clients:
        clients.more()
        with standing_still(house.pids()["broker"]):
            eventually(lambda: spilling(house), timeout_s=20)
            clients.more(300)
            os.kill(spilling(house)[0], signal.SIGKILL)
        clients.more()
    assert stated(house, witness, clients, since=lost_before) < 200


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """Redis takes nothing more; what it has stays."""
    client.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        client.config_set("maxmemory", "0")


def test_what_a_killed_worker_lost_while_redis_was_full_is_stated(house: System, witness: Witness) -> None:
    lost_before = sum(map(len, witness.look().gaps().values()))
    with redis.Redis.from_url(house.broker_url) as client, Clients(house.port) as clients:
        clients.more()
        with full(client):
            eventually(lambda: spilling(house), timeout_s=20)
            for _ in range(3):
                clients.more(300)
                os.kill(spilling(house)[0], signal.SIGKILL)
                eventually(lambda: len(api_workers(house)) == 2 and spilling(house), timeout_s=30)
        clients.more()
    stated(house, witness, clients, since=lost_before)
    living = witness.numbers.keys() - witness.ends.keys()
    assert len(living) <= 2, "every other source has said how far it came"


def test_in_synchronous_mode_no_answer_is_without_its_record_whoever_is_killed() -> None:
    with system_of_its_own("synchronous", "--workers", "2", env={"PRICING_TELEMETRY": "synchronous"}) as system:
        witness = Witness(system)
        with Clients(system.port) as clients:
            for _ in range(3):
                clients.more()
                os.kill(api_workers(system)[0], signal.SIGKILL)
                eventually(lambda: len(api_workers(system)) == 2, timeout_s=30)
            clients.more()
            with standing_still(system.pids()["broker"]):
                clients.more(50)
                os.kill(api_workers(system)[0], signal.SIGKILL)
                clients.more(50)
            clients.more()
        everybody = Counter(clients.answered)
        eventually(lambda: witness.look().users() & everybody == everybody, timeout_s=60)
        witness.close()
