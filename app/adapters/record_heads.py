"""Which requests the entries of the stream of records are about, without their records."""

from collections.abc import Iterator
from typing import NamedTuple

import redis

from app.adapters.redis_clients import unavailable_if_down

_PAGE = 1_000

# KEYS: stream. ARGV: from which entry on, how many. The entry's id, its source, first and count.
_HEADS = """
local heads = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    heads[#heads + 1] = {entry[1], fields['entry:source'] or fields['source'] or '',
        fields['entry:first'] or fields['first'] or '', fields['entry:count'] or fields['count'] or ''}
end
return heads
"""


class Head(NamedTuple):
    source: str
    first: int
    last: int


def heads(client: redis.Redis, stream: str) -> Iterator[Head]:
    """Of every batch in the stream, or in a stream of dead letters. Raises `Unavailable`."""
    script, after = client.register_script(_HEADS), "-"
    while True:
        with unavailable_if_down():
            found: list[tuple[bytes, bytes, bytes, bytes]] = script(keys=[stream], args=[after, _PAGE])
        for _, source, first, count in found:
            if first.isdigit() and count.isdigit():
                yield Head(source.decode(errors="replace"), int(first), int(first) + int(count) - 1)
        if len(found) < _PAGE:
            return
        after = f"({found[-1][0].decode()}"
