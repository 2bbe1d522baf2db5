"""Answers that are lost: the server has done what it was asked, and whoever asked does not hear of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


class _Connection(redis.Connection):
    lost = -1

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().read_response(*args, **kwargs)
        _Connection.lost -= 1
        if _Connection.lost == 0:
            self.disconnect()
            raise redis.ConnectionError("the answer was lost")
        return answer


class LossyClient:
    """`client` asks once more where an answer was lost, as those of the product do, unless it is not to repeat."""

    def __init__(self, url: str, *, repeats: bool = True) -> None:
        retry = Retry(NoBackoff(), 1 if repeats else 0)
        pool = redis.ConnectionPool.from_url(url, connection_class=_Connection, retry=retry)
        self.client = redis.Redis.from_pool(pool)  # which closes it; one that is only given a pool does not
        self.client.ping()

    def has_lost(self) -> bool:
        return _Connection.lost <= 0

    @contextmanager
    def losing(self, nth: int = 1) -> Iterator[None]:
        """Lose the nth answer. Scripts must have been run before: one that the server does not know yet takes more
        answers."""
        _Connection.lost = nth
        yield
        assert self.has_lost(), "there were not so many answers"
