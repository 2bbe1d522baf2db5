"""Those who publish, and the witness who reads along what the stream holds."""

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import redis

from tests.chaos.fleet import Fleet, connect_redis
from tests.chaos.ledger import ACCEPTED, Entry, Failure, Ledger, Sent
from tests.chaos.market import Market

TIMEOUT_S = 10.0
PERMITTED = {"202", "503"}


class Client:
    """One connection to an API, made again when it was lost; `number` tells which. Raises OSError or
    http.client.HTTPException."""

    _numbers = itertools.count(1)

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._address = url.removeprefix("http://")
        self._headers = {"content-type": "application/json", **(headers or {})}
        self.connection = self._connect()

    def post(self, path: str, body: object) -> tuple[int, bytes]:
        """Status and body. An idle connection that the server has closed meanwhile is no failure: once more then."""
        for reused in (self.connection.sock is not None, False):
            try:
                return self._post(path, body)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not (reused and isinstance(error, ConnectionError)):
                    raise
        raise AssertionError("a second try is never a third")

    def _post(self, path: str, body: object) -> tuple[int, bytes]:
        self.connection.request("POST", path, json.dumps(body), self._headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self.connection.close()
        self.connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        self.number = next(self._numbers)
        return http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)


class Load:
    """Publishes what the market says, `rate` events a second while not more than `most_waiting` wait, over several
    connections to every API; some as other services do, straight to the stream or to the channel."""

    def __init__(self, fleet: Fleet, ledger: Ledger, market: Market, seed: int, rate: float, most_waiting: int) -> None:
        self._fleet, self._ledger, self._market = fleet, ledger, market
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._most_waiting = most_waiting
        self._waiting: Callable[[], int] = lambda: 0
        publishers = 2 * len(fleet.urls)
        self._pause_s = publishers / rate
        self._threads = [
            threading.Thread(target=self._publish, args=(who, random.Random(f"{seed} {n}")), daemon=True)
            for n, who in enumerate(list(fleet.urls) * 2)
        ]

    def first_prices(self) -> None:
        """Give every row a price; returns when each event is accepted."""
        with self._client("api") as client:
            for event in self._market.first_prices():
                self._to_api(client, "api", self._ledger.send(event, "api"), threading.Event())

    def start(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 60) -> None:
        """Returns when every event has been answered with 202, or given up by its publisher on purpose."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a publisher got no answer"

    def _publish(self, who: str, dice: random.Random) -> None:
        with self._client(who) as client, closing(connect_redis(self._fleet.broker_url)) as direct:
            while not self._stopping.is_set():
                due = time.monotonic() + self._pause_s
                if self._waiting() <= self._most_waiting:
                    self._publish_one(client, direct, who, dice)
                self._stopping.wait(max(due - time.monotonic(), 0))

    def _client(self, who: str) -> closing[Client]:
        return closing(Client(self._fleet.urls[who], self._fleet.system.with_key))

    def _publish_one(self, client: Client, direct: redis.Redis, who: str, dice: random.Random) -> None:
        with self._lock:
            event = self._market.next()
        way = dice.random()
        if way < 0.85:
            patience = threading.Event() if dice.random() > 0.05 else None
            self._to_api(client, who, self._ledger.send(event, "api"), patience)
        else:
            self._directly(direct, self._ledger.send(event, "stream" if way < 0.95 else "channel"))

    def _to_api(self, client: Client, who: str, sent: Sent, patience: threading.Event | None) -> None:
        """Until it is accepted; without patience once. Each try is the same event, by its id."""
        while not sent.accepted:
            asked_at = self._ledger.now()
            try:
                status, body = client.post("/api/v1/publish-market-event", sent.event)
                answer = str(status)
                if answer not in PERMITTED:
                    self._ledger.failed(
                        Failure(asked_at, self._ledger.now(), who, f"{status} to a publisher: {body!r}")
                    )
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
            self._ledger.answered(sent, answer)
            if answer != ACCEPTED:
                if patience is None:
                    return
                patience.wait(0.1)

    def _directly(self, client: redis.Redis, sent: Sent) -> None:
        """As another service: what it wrote counts if the stream has it."""
        message = json.dumps(sent.event)
        try:
            if sent.way == "stream":
                client.xadd("events", {"event": message})
                answer = ACCEPTED
            else:
                for _ in range(2):  # some say everything twice
                    answer = f"{client.publish('market_events', message)} heard"
        except redis.RedisError as error:
            answer = type(error).__name__
        self._ledger.answered(sent, answer)


class Witness:
    """Reads the whole stream as a consumer group of its own, so that nothing is trimmed before it was seen."""

    NAME = "witness"

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._client, self._ledger = connect_redis(fleet.broker_url), ledger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self._client.xgroup_create("events", self.NAME, id="0", mkstream=True)
        self._thread.start()

    def stop(self) -> None:
        """Afterwards the ledger has everything that was in the stream when this was called."""
        self._stopping.set()
        self._thread.join()
        while self._turn("0") or self._turn(">"):
            pass
        self._client.xgroup_destroy("events", self.NAME)
        self._client.close()

    def _read(self) -> None:
        start = ">"
        while not self._stopping.is_set():
            try:
                start = ">" if not self._turn(start) or start == ">" else "0"
                self._stopping.wait(0.02)
            except redis.RedisError:
                start = "0"  # what was read, and not acknowledged, when Redis died
                self._stopping.wait(0.2)

    def _turn(self, start: str) -> bool:
        answer: Any = self._client.xreadgroup(self.NAME, "witness", {"events": start}, count=500)
        entries = [entry for _, entries in answer for entry in entries]
        if entries:
            self._ledger.in_stream(_entry(stream_id, fields) for stream_id, fields in entries)
            self._client.xack("events", self.NAME, *(stream_id for stream_id, _ in entries))
        return bool(entries)


def _entry(stream_id: str, fields: dict[str, str]) -> Entry:
    raw = fields.get("event", "")
    try:
        event_id = json.loads(raw).get("id", "")
    except (ValueError, AttributeError):
        event_id = ""
    return Entry(stream_id, raw, event_id)
