"""What workers and listeners work with, for a test: nothing of it stays open."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu.pools
import pytest
import redis

from app.adapters.redis_clients import make_redis
from app.bootstrap import Resources, open_resources
from app.settings import Settings


@contextmanager
def opened(settings: Settings) -> Iterator[Resources]:
    clients: list[redis.Redis] = []

    def remember(*arguments: Any, **options: Any) -> redis.Redis:
        clients.append(make_redis(*arguments, **options))
        return clients[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.bootstrap.make_redis", remember)
        resources = open_resources(settings)
    try:
        yield resources
    finally:
        for client in clients:
            client.close()
        kombu.pools.reset()
        resources.store.close()
