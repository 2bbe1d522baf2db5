"""How long a near cache can answer with a price that a writer has replaced, when the feed breaks in different ways.

Only the feed goes through the proxy: reads reach Valkey, so an old answer can only have come from the near cache.
"""

import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pytest
import redis
from msgspec.structs import replace

from app.adapters.price_cache import INVALIDATIONS, PriceCache, clear
from app.domain.sheet import decode_sheet, encode_sheet
from tests.support.proxy import Proxy, proxy_to
from tests.support.reading import LIFETIMES, SILENCE_S, Process, process
from tests.support.waiting import eventually
from tests.unit.strategies import batch, row

(SHEET,) = batch([row()]).encoded()
NAME = (SHEET.product_id, SHEET.location)
SLACK_S = 0.5
"""For a machine that is busy with other tests."""


class Prices:
    """One price, which changes."""

    def __init__(self, client: redis.Redis) -> None:
        self._cache = PriceCache(client, LIFETIMES, lambda keys: np.full(len(keys), self.version))
        self.version = 0

    def change(self) -> None:
        self.version += 1
        payload = encode_sheet(replace(decode_sheet(SHEET.payload), version=self.version))
        self._cache.put([replace(SHEET, version=self.version, payload=payload)])


@pytest.fixture
def prices(valkey: redis.Redis) -> Prices:
    made = Prices(valkey)
    made.change()
    return made


@pytest.fixture
def proxy(valkey_url: str) -> Iterator[Proxy]:
    with proxy_to(urlsplit(valkey_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def reading(valkey_url: str, proxy: Proxy) -> Iterator[Process]:
    url = urlsplit(valkey_url)
    through = urlunsplit(url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")))
    with process(valkey_url, feed_url=through) as reading:
        yield reading


def keeps(reading: Process) -> bool:
    """Whether what it reads now stays at hand."""
    reading.find(NAME)
    return reading.has_at_hand(NAME)


def stale_for(reading: Process, prices: Prices) -> float:
    """Change the price; the seconds until it is read, counted from when the writer knew that it was stored."""
    prices.change()
    changed = time.monotonic()
    eventually(lambda: reading.find(NAME).slot.version == prices.version)
    return time.monotonic() - changed


def test_a_change_is_read_at_once_while_the_feed_works(reading: Process, prices: Prices) -> None:
    for _ in range(5):
        eventually(lambda: keeps(reading))
        assert stale_for(reading, prices) < SLACK_S


def test_a_feed_that_is_cut_is_distrusted_at_once_and_comes_back(
    reading: Process, prices: Prices, proxy: Proxy
) -> None:
    eventually(lambda: keeps(reading))
    proxy.cut()
    assert stale_for(reading, prices) < SLACK_S
    assert not keeps(reading)
    proxy.heal()
    eventually(lambda: keeps(reading), timeout_s=5)
    assert stale_for(reading, prices) < SLACK_S


@pytest.mark.parametrize("resume", [False, True], ids=["for ever", "for a while"])
def test_a_feed_that_is_silent_is_trusted_no_longer_than_its_bound_and_comes_back(
    reading: Process, prices: Prices, proxy: Proxy, resume: bool
) -> None:
    eventually(lambda: keeps(reading))
    proxy.freeze()
    prices.change()
    assert reading.find(NAME).slot.version < prices.version, "the feed was not silent, so nothing was measured"
    assert stale_for(reading, prices) < SILENCE_S + SLACK_S
    assert not keeps(reading)
    proxy.heal(resume=resume)
    eventually(lambda: keeps(reading), timeout_s=5)
    assert stale_for(reading, prices) < SLACK_S


def test_what_was_missed_between_two_connections_is_not_missed_for_good(
    reading: Process, prices: Prices, proxy: Proxy
) -> None:
    """The connection is lost and made again so soon that the silence is never too long."""
    for _ in range(3):
        eventually(lambda: keeps(reading))
        proxy.freeze()
        proxy.cut()
        prices.change()
        proxy.heal(resume=True)
        assert stale_for(reading, prices) < SLACK_S


def test_a_clearing_that_the_feed_missed_takes_place_when_it_is_back(
    reading: Process, prices: Prices, proxy: Proxy, valkey: redis.Redis
) -> None:
    """Until then what is at hand would be served stale in an outage."""
    eventually(lambda: keeps(reading))
    proxy.cut()
    clear(valkey)
    assert known(reading), "it has heard of the clearing, so nothing was missed"
    proxy.heal()
    eventually(lambda: not known(reading), timeout_s=5)
    prices.change()
    eventually(lambda: keeps(reading), timeout_s=5)
    for _ in range(2):
        proxy.cut()
        eventually(lambda: not keeps_anything(reading))
        proxy.heal()
        eventually(lambda: keeps_anything(reading), timeout_s=5)
        assert known(reading), "an old clearing is no reason to forget again"


def known(reading: Process) -> bool:
    return reading.call(lambda: reading.near.last_known(NAME)) is not None


def test_heartbeats_of_others_do_not_vouch_for_a_feed(reading: Process, valkey: redis.Redis) -> None:
    eventually(lambda: keeps_anything(reading))
    reading.call(reading.reader.lost)
    valkey.publish(INVALIDATIONS, b".somebody 99999999999")
    assert not reading.call(lambda: reading.near.trusted)


def keeps_anything(reading: Process) -> bool:
    return reading.call(lambda: reading.near.trusted)


def test_a_message_that_cannot_be_read_empties_the_near_cache(
    reading: Process, prices: Prices, valkey: redis.Redis
) -> None:
    eventually(lambda: keeps(reading))
    valkey.publish(INVALIDATIONS, b"\xff nonsense")
    eventually(lambda: reading.call(lambda: reading.near.last_known(NAME)) is None)
    eventually(lambda: keeps(reading))
    assert stale_for(reading, prices) < SLACK_S
