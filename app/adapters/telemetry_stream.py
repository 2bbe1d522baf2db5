"""The stream of request records, as those put into it who answer requests."""

from collections.abc import Sequence
from typing import Any

import redis

from app.adapters.redis_clients import unavailable_if_down
from app.domain.parcel import Parcel
from app.errors import Overloaded

# KEYS: stream. ARGV: most bytes that the stream may take, then of each entry: how many names and values follow, and
# those. All are added, or none. A stream that is short need not be measured.
_ADD = """
if redis.call('XLEN', KEYS[1]) > 100 and redis.call('MEMORY', 'USAGE', KEYS[1]) > tonumber(ARGV[1]) then return 0 end
local at = 2
while at <= #ARGV do
    local count = tonumber(ARGV[at])
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
    at = at + count + 1
end
return 1
"""


class TelemetryStream:
    """`client` must not repeat commands by itself. Who repeats what was not answered may have an entry in the stream
    twice; whoever reads them knows records by their source and number."""

    def __init__(self, client: redis.Redis, stream: str, limit_bytes: int) -> None:
        self._client, self._stream, self._limit_bytes = client, stream, limit_bytes
        self._add = client.register_script(_ADD)

    def add(self, parcels: Sequence[Parcel]) -> None:
        """All of them. Raises `Unavailable` where Redis is away, and `Overloaded` where the stream has its full size,
        since nobody reads it."""
        arguments: list[Any] = [self._limit_bytes]
        for parcel in parcels:
            arguments.append(2 * len(parcel.fields))
            arguments += [value for pair in parcel.fields.items() for value in pair]
        with unavailable_if_down():
            if not self._add(keys=[self._stream], args=arguments):
                raise Overloaded(f"the stream {self._stream} has more than {self._limit_bytes:,} bytes")

    def close(self) -> None:
        self._client.close()
