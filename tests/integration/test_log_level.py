"""What is said of the log level, and what is no word of anybody."""

import pytest
import redis

from app.adapters.log_level import LogLevel
from app.errors import Unavailable


def test_a_level_holds_until_its_time_is_over_or_it_is_taken_back(valkey: redis.Redis) -> None:
    shared = LogLevel(valkey)
    assert shared.said() is None
    shared.say("debug", 60)
    said = shared.said()
    assert said is not None
    assert (said.level, 0 < said.left_s <= 60) == ("debug", True)
    shared.take_back()
    assert shared.said() is None


@pytest.mark.parametrize("nonsense", [b"", b"loud", b"DEBUG", b"10", b"\xff\x00"])
def test_what_is_no_level_is_as_if_nothing_were_said(valkey: redis.Redis, nonsense: bytes) -> None:
    valkey.set("log:level", nonsense)
    assert LogLevel(valkey).said() is None


def test_a_key_of_another_kind_is_an_outage_to_those_who_follow(valkey: redis.Redis) -> None:
    valkey.rpush("log:level", "debug")
    with pytest.raises(Unavailable):
        LogLevel(valkey).said()
