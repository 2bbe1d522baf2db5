"""The contract itself, with the plainest sink that passes: a hash, in a database of Valkey's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from app.adapters.redis_clients import make_redis, unavailable_if_down
from app.domain.telemetry import RecordBatch
from app.pipeline.sinks import Sink
from tests.support.proxy import Proxy, proxy_to
from tests.support.sink_contract import SinkContract


class HashSink:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def write(self, items: Sequence[RecordBatch]) -> None:
        with unavailable_if_down("hash"), self._client.pipeline(transaction=True) as pipeline:
            for batch in items:
                for number, record in enumerate(batch.records, batch.first):
                    pipeline.hset("records", f"{batch.source} {number}", record.user_id)
            pipeline.execute()


class HashEnd:
    def __init__(self, client: redis.Redis, proxy: Proxy) -> None:
        self._client, self._proxy = client, proxy

    def open(self) -> Sink[RecordBatch]:
        return HashSink(self._client)

    def written(self) -> Counter[str]:
        return Counter(user.decode() for user in self._client.hvals("records"))  # type: ignore[union-attr]

    @contextmanager
    def away(self) -> Iterator[None]:
        self._proxy.cut()
        yield
        self._proxy.heal()


class TestHash(SinkContract):
    @pytest.fixture
    def end(self, valkey_url: str) -> Iterator[HashEnd]:  # type: ignore[override]
        where = urlsplit(valkey_url)
        with proxy_to(where.port) as proxy:  # type: ignore[arg-type]
            there = where._replace(netloc=where.netloc.replace(str(where.port), str(proxy.port)), path="/1")
            with make_redis(urlunsplit(there), timeout_s=2) as client:
                yield HashEnd(client, proxy)
