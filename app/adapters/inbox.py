"""Inboxes: the stream entries that wait to be applied, one sorted set per scope, in the order of the stream.

An entry stays in its inbox until it is acknowledged, so whoever next holds the scope's lock finds what a dead holder
had taken. Only a scope's holder takes from its inbox or settles: each script compares the holder's fencing token with
the newest that was given. Putting an entry in twice changes nothing, and one that is acknowledged stays out.

Entries of a failed batch become suspects: they are kept apart with the time of their next try, and are tried in
ever smaller company, in the end alone, so that a poisonous one takes no others with it. `trying:<scope>` has
the holder's token and the batch that is being applied; who finds another's knows that it died with that batch in hand.
"""

import json
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, Protocol

import redis

from app.adapters.event_names import Names, tally_key
from app.adapters.inbox_scripts import FAIL, PUT, PUT_BACK, SETTLE, TAKE
from app.adapters.locks import HINT_LIFE_S, Beginning, fence_key, hint_key
from app.adapters.redis_clients import unavailable_if_down
from app.domain.positions import position
from app.errors import LockLost, Unavailable
from app.services.ports import DIED, TOGETHER, Failure, Fate, Held, Letter, Waiting

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0

PUT_BACK_PATIENCE_S = 10.0
"""How long a batch is put back for where Redis is away: what it finds then in hand would look like a death."""


INBOXES = "inboxes"
"""Where the names of all scopes are that ever had something in their inbox."""


class Due(NamedTuple):
    """What is to be done now in an inbox: how many entries that were not tried yet, or are being tried (`fresh`), and
    how many suspects whose time has come (`again`)."""

    fresh: int
    again: int


class Filled(NamedTuple):
    """An inbox into which something was put: how many fresh entries wait in it, and whether a task that takes them has
    to be queued, because no hint was given before."""

    waiting: int
    wants_task: bool


class HeldInbox(Held, Protocol):
    """A lock that may have come with the first batch of its inbox, as `Inboxes.taking` has it."""

    def take_begun(self) -> Any: ...


class Inboxes:
    """Every method raises `Unavailable` where Redis is away, and those of a holder `LockLost` where there is a newer
    one."""

    def __init__(self, client: redis.Redis, names: Names) -> None:
        self._client, self._names = client, names
        self._failures = f"{names.stream}:failures"
        self._put = client.register_script(PUT)
        self._take = client.register_script(TAKE)
        self._put_back = client.register_script(PUT_BACK)
        self._fail = client.register_script(FAIL)
        self._settle = client.register_script(SETTLE)

    def put(self, entries: Mapping[str, Sequence[str]], hint: str) -> dict[str, Filled]:
        """Put stream ids that are not acknowledged into the inboxes of their scopes, and give each a hint unless one is
        on its way, in one step. Once more with the same `hint`, whose tasks were perhaps not queued, it wants them
        again."""
        keys: list[str] = [INBOXES, self._names.stream]
        arguments: list[str | int] = [self._names.group, hint, int(HINT_LIFE_S * 1000)]
        for scope, stream_ids in entries.items():
            keys += [inbox_key(scope), _suspects(scope), hint_key(scope)]
            arguments += [scope, str(len(stream_ids))]
            arguments += (part for stream_id in stream_ids for part in (str(_score(stream_id)), stream_id))
        with unavailable_if_down():
            found: list[tuple[int, int]] = self._put(keys=keys, args=arguments)
        return {scope: Filled(waiting, bool(new)) for scope, (waiting, new) in zip(entries, found, strict=True)}

    def waiting(self) -> dict[str, Due]:
        """Scopes in whose inbox something is to be done now, and how much."""
        with unavailable_if_down():
            names: Any = self._client.smembers(INBOXES)
            scopes = sorted(name.decode() for name in names)
            now = _now_ms(self._client)
            with self._client.pipeline(transaction=False) as pipeline:
                for scope in scopes:
                    pipeline.zcard(inbox_key(scope))
                    pipeline.zcount(_suspects(scope), "-inf", now)
                counts: list[int] = pipeline.execute()
        dues = map(Due, counts[::2], counts[1::2])
        return {scope: due for scope, due in zip(scopes, dues, strict=True) if any(due)}

    def taking(self, scope: str, limit: int) -> Beginning:
        """The first `take` of a turn, for the step in which the scope's lock is got."""
        return Beginning(TAKE, self._keys(scope), _take_arguments(limit))

    def take(self, held: HeldInbox, limit: int) -> list[Waiting]:
        """The next entries to be applied together, the oldest first, at most `limit`."""
        taken = held.take_begun()
        if taken is None:
            taken = self._taken(held, limit)
        if isinstance(taken, bytes):
            # A holder of the release before wrote no token: only the ids have a hyphen.
            self._note_death(held, [word for word in taken.decode().split() if "-" in word])
            taken = self._taken(held, limit)
        return [_waiting(stream_id.decode(), event, failure) for stream_id, event, failure in taken]

    def _taken(self, held: Held, limit: int) -> Any:
        with _as_holder():
            return self._take(keys=self._keys(held.scope), args=[held.token, *_take_arguments(limit)])

    def put_back(self, held: Held) -> None:
        """The batch in hand was not applied, for reasons that are not its own. Waits for Redis a while."""
        deadline = time.monotonic() + PUT_BACK_PATIENCE_S
        while True:
            try:
                with suppress(LockLost), _as_holder():
                    self._put_back(keys=self._keys(held.scope), args=[held.token])
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def fail(self, held: Held, failed: Sequence[tuple[Waiting, str]]) -> None:
        """Entries of the batch in hand failed, each with an error: they are suspects now, and are tried again later,
        those that have failed equally often at the same time. The others are back in the inbox."""
        arguments: list[str | int] = []
        wait_ms = cache(_wait_ms)
        with _as_holder():
            now = _now_ms(self._client)
            for waiting, error in failed:
                failure = _after(waiting.failure, error, now)
                arguments += [waiting.stream_id, json.dumps(failure._asdict()), now + wait_ms(failure.attempts)]
            self._fail(keys=self._keys(held.scope), args=[held.token, *arguments])

    def settle(self, held: Held, done: Mapping[str, Fate], letters: Sequence[Letter]) -> int:
        """Acknowledge what was applied, now or before, and set aside what cannot be, in one step, and note it in the
        tally; how many letters are new."""
        arguments: list[str | bytes | int] = [self._names.group, json.dumps(done)]
        for letter in letters:
            fields = list(_fields(letter))
            arguments += [letter.stream_id, letter.event_id, len(fields), *fields]
        with _as_holder():
            return int(
                self._settle(
                    keys=[
                        *self._keys(held.scope),
                        self._names.dead_letters,
                        f"{self._names.dead_letters}:index",
                        tally_key(self._names),
                    ],
                    args=[held.token, *arguments],
                )
            )

    def oldest_pending(self, but: Collection[str]) -> int | None:
        """The position of the oldest entry that was read and is not acknowledged, in whatever scope, apart from these
        stream ids; None where there is none."""
        with unavailable_if_down():
            oldest: Any = self._client.xpending_range(
                self._names.stream, self._names.group, min="-", max="+", count=len(but) + 1
            )
        others = (entry["message_id"].decode() for entry in oldest)
        return next((position(stream_id) for stream_id in others if stream_id not in but), None)

    def _note_death(self, held: Held, stream_ids: Sequence[str]) -> None:
        """The last holder died with these in hand."""
        known: Any = self._client.hmget(self._failures, stream_ids)
        self.fail(held, [(_waiting(one, b"", failure), DIED) for one, failure in zip(stream_ids, known, strict=True)])

    def _keys(self, scope: str) -> list[str]:
        inbox = [inbox_key(scope), _suspects(scope), _trying(scope)]
        return [fence_key(scope), *inbox, self._failures, self._names.stream]


def _take_arguments(limit: int) -> list[str | int]:
    return [limit, json.dumps(TOGETHER)]


def inbox_key(scope: str) -> str:
    return f"inbox:{scope}"


def _suspects(scope: str) -> str:
    return f"suspects:{scope}"


def _trying(scope: str) -> str:
    return f"trying:{scope}"


@contextmanager
def _as_holder() -> Iterator[None]:
    with unavailable_if_down():
        try:
            yield
        except redis.ResponseError as error:
            if not str(error).startswith("LOCKLOST"):
                raise
            raise LockLost(str(error).removeprefix("LOCKLOST ")) from None


def _score(stream_id: str) -> int:
    """A stream id as a number that a double holds exactly (until 2039) and that orders up to 4,096 entries of one ms;
    entries that it cannot tell apart are ordered by their positions once they are taken."""
    ms, _, sequence = stream_id.partition("-")
    return int(ms) << 12 | min(int(sequence), 4095)


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def _waiting(stream_id: str, event: bytes, failure: bytes | None) -> Waiting:
    return Waiting(stream_id, position(stream_id), event, None if failure is None else _failure(failure))


def _failure(noted: bytes) -> Failure:
    """What is noted of a failed entry; of a note that cannot be read, that there was one failure."""
    try:
        fields = json.loads(noted)
        return Failure(*(type_(fields[name]) for name, type_ in Failure.__annotations__.items()))
    except (ValueError, TypeError, KeyError, OverflowError):
        return Failure(1, "unknown", 0, "unknown", 0)


def _after(before: Failure | None, error: str, now: int) -> Failure:
    first = before or Failure(0, error, now, error, now)
    return first._replace(attempts=first.attempts + 1, last_error=error, last_failed_at=now)


def _wait_ms(attempts: int) -> int:
    """Full jitter: anything up to a bound that doubles with every attempt."""
    bound = min(_FIRST_WAIT_S * 2 ** min(attempts - 1, 16), _LONGEST_WAIT_S)
    return int(random.uniform(0, bound) * 1000)  # noqa: S311 - spreads load only


def _fields(letter: Letter) -> Iterator[str | bytes | int]:
    failure = letter.failure
    for name, value in (
        ("event", letter.event),
        ("stream_id", letter.stream_id),
        ("event_id", letter.event_id),
        ("reason", letter.reason),
        ("attempts", failure.attempts),
        ("first_error", failure.first_error),
        ("first_failed_at", failure.first_failed_at),
        ("last_error", failure.last_error),
        ("last_failed_at", failure.last_failed_at),
        ("trace_id", letter.trace_id),
    ):
        yield from (name, value)
