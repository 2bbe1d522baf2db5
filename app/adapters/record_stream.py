"""The stream of request records, as those read it who keep them: a consumer group for each sink."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import redis

from app.adapters.redis_clients import unavailable_if_down
from app.adapters.stream_group import StreamGroup

POSTGRESQL, VICTORIAMETRICS = "postgresql", "victoriametrics"
SINKS = (POSTGRESQL, VICTORIAMETRICS)
"""Every sink that there may be. Each one's group has its name."""

UNSERVED_S = 600
"""A sink that no listener has configured for so long is not coming back."""

# A group without a sink would hold the stream for ever. KEYS: stream, who serves it, tally, setbacks. ARGV: group.
_DISMISS = """
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local gone = redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
if gone == 1 then redis.call('DEL', KEYS[3], KEYS[4]) end
return gone
"""


class RecordStream:
    """`sinks` are those that are configured. Every method raises `Unavailable` where Redis is away. `client` must not
    repeat commands by itself."""

    def __init__(self, client: redis.Redis, stream: str, sinks: Sequence[str]) -> None:
        self._client, self._stream = client, stream
        self.groups: Mapping[str, StreamGroup] = MappingProxyType(
            {sink: StreamGroup(client, stream, sink) for sink in sinks}
        )
        self._dismiss = client.register_script(_DISMISS)

    def ensure(self) -> None:
        """The groups of the sinks are there, from the first entry that the stream still has. To be called before
        anything is trimmed, and again and again: so others know that these sinks are served."""
        for sink, group in self.groups.items():
            with unavailable_if_down():
                self._client.set(self._served(sink), 1, ex=UNSERVED_S)
            group.ensure()

    def dismiss_unserved(self) -> list[str]:
        """Let the groups go whose sink no listener has had configured for `UNSERVED_S`; which these were. One that is
        configured again later begins with what the stream has then. Its dead letters stay."""
        dismissed = []
        for sink in SINKS:
            if sink not in self.groups:
                tally, setbacks = (f"{self._stream}:{sink}:{what}" for what in ("tally", "setbacks"))
                with unavailable_if_down():
                    gone = self._dismiss(keys=[self._stream, self._served(sink), tally, setbacks], args=[sink])
                if gone:
                    dismissed.append(sink)
        return dismissed

    def oldest_s(self) -> float:
        """Age of the oldest batch that is not in PostgreSQL yet, in seconds; 0 where all are."""
        group = self.groups[POSTGRESQL]
        group.ensure()
        return group.lag().oldest_s

    def trim(self) -> int:
        """Drop entries that every group has acknowledged; how many."""
        return next(iter(self.groups.values())).trim()

    def close(self) -> None:
        self._client.close()

    def _served(self, sink: str) -> str:
        return f"{self._stream}:{sink}:served"
