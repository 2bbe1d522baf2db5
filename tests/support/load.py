"""Clients that keep their connections and ask without pause, and forgive nothing: every request has to be answered."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from tests.support.system import System

TIMEOUT_S = 20.0


class Load:
    """What became of the requests. `failed` are those without an answer or with a server error, `refused` the
    connections that nobody took, which loses nothing; `accepted` the events that were answered with 202: what their
    product costs from then on. Each product has one publisher, who only ever raises its price."""

    def __init__(self, system: System) -> None:
        self.port = system.port
        self._headers = {"Content-Type": "application/json", **system.with_key}
        self.answered: Counter[int] = Counter()
        self.failed: list[str] = []
        self.refused = 0
        self.slowest_s = 0.0
        self.accepted: dict[str, tuple[str, int]] = {}
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._own = threading.local()

    @property
    def requests(self) -> int:
        return self.answered.total() + len(self.failed)

    def ask_for_prices(self, products: Sequence[str], pause_s: float) -> None:
        """One client; it waits `pause_s` seconds between an answer and the next request."""
        for product in self._turns(products, pause_s):
            self._ask("POST", "/api/v1/price", {"product_id": product, "user_location": "NY"})

    def publish(self, products: Sequence[str], pause_s: float) -> None:
        """Another, that changes their list prices."""
        for amount, product in enumerate(self._turns(products, pause_s), 1):
            event_id = f"load-{uuid4().hex}"
            event = {"id": event_id, "type": "list_price.changed", "subject": product, "location": "NY"}
            if self._ask("POST", "/api/v1/publish-market-event", event | {"data": {"amount": amount}}) == 202:
                self.accepted[event_id] = product, amount

    def _turns(self, products: Sequence[str], pause_s: float) -> Iterator[str]:
        for product in itertools.cycle(products):
            if self.stopping.wait(pause_s):
                break
            yield product
        self._hang_up()

    def _ask(self, method: str, path: str, body: object) -> int:
        """The status, or 0 where there was no connection or no answer."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
            try:
                connection.connect()
            except ConnectionRefusedError:
                with self._lock:
                    self.refused += 1
                self.stopping.wait(0.05)
                return 0
            connection.auto_open = 0
            self._own.connection = connection
        began = time.monotonic()
        try:
            connection.request(method, path, json.dumps(body), self._headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.failed.append(f"{method} {path}: {error!r} after {time.monotonic() - began:.3f} s")
            self._hang_up()
            return 0
        with self._lock:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.answered[response.status] += 1
            if response.status >= 500:
                self.failed.append(f"{method} {path}: {response.status}")
        if response.will_close:
            self._hang_up()
        return response.status

    def _hang_up(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
        self._own.connection = None


@contextmanager
def load_on(
    system: System, products: Sequence[str], readers: Sequence[float], publishers: Sequence[float]
) -> Iterator[Load]:
    """Clients at work until the block ends; each pauses for the given seconds between two requests."""
    load = Load(system)
    threads = [
        threading.Thread(target=load.ask_for_prices, args=(products, pause_s), daemon=True) for pause_s in readers
    ]
    for index, pause_s in enumerate(publishers):
        own = products[index :: len(publishers)]
        threads.append(threading.Thread(target=load.publish, args=(own, pause_s), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
