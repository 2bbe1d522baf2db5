"""The log level at run time: a key in Redis that every process follows, and that expires by itself."""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, get_args

import redis
import structlog

from app.adapters.redis_clients import make_redis, unavailable_if_refused
from app.errors import Unavailable
from app.observability.logging import set_level
from app.settings import Level, Settings

LOOK_S = 1.0
"""How often a process looks, in seconds."""

_KEY = "log:level"
_logger = structlog.get_logger(__name__)


class Said(NamedTuple):
    """A level, and for how many more seconds."""

    level: str
    left_s: float


class LogLevel:
    """Every method raises `Unavailable` where Redis does not answer as it should."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def say(self, level: str, for_s: float) -> None:
        with unavailable_if_refused():
            self._client.set(_KEY, level, px=max(1, round(for_s * 1000)))

    def take_back(self) -> None:
        with unavailable_if_refused():
            self._client.delete(_KEY)

    def said(self) -> Said | None:
        """None where every process has the level of its settings, also where what is said is no level."""
        with unavailable_if_refused(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.get(_KEY)
            pipeline.pttl(_KEY)
            level, left_ms = pipeline.execute()
        known = {known.encode(): known for known in get_args(Level)}
        return Said(known[level], left_ms / 1000) if level in known else None


def follow(settings: Settings) -> None:
    """Have the level that is said, in a thread of this process, from now on; without a broker there is nobody to say.
    While Redis is away the last word holds until its time is over."""
    if settings.events_url is not None:
        client = make_redis(settings.events_url.get_secret_value(), settings.store_timeout_s)
        arguments = (LogLevel(client).said, settings.log_level)
        threading.Thread(target=_follow, args=arguments, name="log level", daemon=True).start()


def _follow(said: Callable[[], Said | None], own: str) -> None:
    wanted, until, level = own, math.inf, own
    while True:
        with suppress(Unavailable):
            now = said()
            wanted, until = (own, math.inf) if now is None else (now.level, time.monotonic() + now.left_s)
        if time.monotonic() >= until:
            wanted, until = own, math.inf
        if wanted != level:
            # Said where it is heard: before it is quieter, or once it is louder.
            quieter = logging.getLevelName(wanted.upper()) > logging.getLevelName(level.upper())
            for do in (_tell, set_level) if quieter else (set_level, _tell):
                do(wanted)
            level = wanted
        time.sleep(LOOK_S)


def _tell(level: str) -> None:
    _logger.info("log level", log_level=level)
