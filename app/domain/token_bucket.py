"""Token buckets: so many at once, and so many in the long run."""

from typing import NamedTuple

from app.domain.api_key import RateLimit


class Draw(NamedTuple):
    """What a bucket gave, what is left in it, and in how many ms it has another token (0: now) and is full."""

    granted: int
    left: int
    next_ms: int
    full_ms: int


class TokenBucket:
    """Full at first. Divided by `share`, it has that part of the limit, but a place for one token at least. Times are
    ms of any clock that never runs backwards. All is counted in such parts of a token that as many as the limit has
    requests flow in within a ms: integers, so that nothing is lost by rounding, however often it is asked."""

    def __init__(self, limit: RateLimit, share: int, now_ms: int) -> None:
        self._flow, self._token = limit.requests, limit.window_s * 1000 * share
        self._capacity = max(self._token, limit.requests * limit.window_s * 1000)
        self._parts, self._at_ms = self._capacity, now_ms

    def draw(self, wanted: int, now_ms: int) -> Draw:
        """As many tokens as are wanted, or as there are."""
        self._parts = min(self._capacity, self._parts + (now_ms - self._at_ms) * self._flow)
        self._at_ms = now_ms
        granted = min(wanted, self._parts // self._token)
        self._parts -= granted * self._token
        return Draw(
            granted,
            self._parts // self._token,
            max(0, -(-(self._token - self._parts) // self._flow)),
            -(-(self._capacity - self._parts) // self._flow),
        )
