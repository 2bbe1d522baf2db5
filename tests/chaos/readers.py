"""Those who ask for prices all the while."""

import http.client
import json
import random
import threading
from contextlib import closing
from datetime import datetime

from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Failure, Ledger, Read
from tests.chaos.load import Client
from tests.chaos.market import DECIMALS, Row


class Readers:
    """One thread for each connection; `each` of them to every API, `rate` questions a second altogether."""

    def __init__(self, fleet: Fleet, ledger: Ledger, rows: list[Row], seed: int, rate: float, each: int = 2) -> None:
        self._ledger, self._rows = ledger, rows
        self._stopping = threading.Event()
        self._pause_s = each * len(fleet.urls) / rate
        self._threads = [
            threading.Thread(target=self._read, args=(who, url, random.Random(f"reader {seed} {n} {who}")), daemon=True)
            for n in range(each)
            for who, url in fleet.urls.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _read(self, who: str, url: str, dice: random.Random) -> None:
        with closing(Client(url)) as client:
            while not self._stopping.wait(self._pause_s):
                self._ask(client, who, dice.choice(self._rows))

    def _ask(self, client: Client, who: str, row: Row) -> None:
        asked_at = self._ledger.now()
        try:
            status, body = client.post("/api/v1/price", {"product_id": row.product, "user_location": row.location})
        except (OSError, http.client.HTTPException) as error:
            self._failed(asked_at, who, f"{type(error).__name__} {error}")
            self._stopping.wait(0.2)
            return
        if status != 200:
            self._failed(asked_at, who, f"{status} {body.decode(errors='replace')[:300]}")
        else:
            self._ledger.read(_decode(who, client.number, row, asked_at, self._ledger.now(), body))

    def _failed(self, asked_at: float, who: str, what: str) -> None:
        self._ledger.failed(Failure(asked_at, self._ledger.now(), who, what))


def _decode(who: str, connection: int, row: Row, asked_at: float, answered_at: float, body: bytes) -> Read:
    quote = json.loads(body)
    price = round(quote["final_price"] * 10 ** DECIMALS[row.location])
    computed_at = round(datetime.fromisoformat(quote["computed_at"]).timestamp() * 1000)
    return Read(who, connection, asked_at, answered_at, row, quote["version"], price, quote["source"], computed_at)
