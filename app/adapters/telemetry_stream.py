"""The stream of request records, as those put into it who answer requests."""

import threading
from collections.abc import Sequence
from typing import Any

import redis

from app.adapters.redis_clients import Connection, unavailable_if_down
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
    """Over a bare connection, since what a client and its pool do beside costs as much again: a call that comes every
    40 ms finds nothing of it in the processor's caches. What is repeated because it was not answered may be in the
    stream twice; whoever reads it knows records by their source and number."""

    def __init__(self, connection: Connection, stream: str, limit_bytes: int) -> None:
        self._connection, self._stream, self._limit_bytes = connection, stream, limit_bytes
        self._mine = threading.Lock()

    def add(self, parcels: Sequence[Parcel]) -> None:
        """All of them. Raises `Unavailable` where Redis is away, and `Overloaded` where the stream has its full size,
        since nobody reads it."""
        arguments: list[Any] = [self._limit_bytes]
        for parcel in parcels:
            arguments.append(2 * len(parcel.fields))
            arguments += [value for pair in parcel.fields.items() for value in pair]
        with self._mine, unavailable_if_down():
            try:
                added = self._call(arguments)
            except redis.ConnectionError:  # perhaps the server had closed it, since nothing happened for long
                added = self._call(arguments)
            if not added:
                raise Overloaded(f"the stream {self._stream} has more than {self._limit_bytes:,} bytes")

    def _call(self, arguments: Sequence[Any]) -> Any:
        self._connection.send_command("EVAL", _ADD, 1, self._stream, *arguments)
        return self._connection.read_response()

    def close(self) -> None:
        self._connection.disconnect()
