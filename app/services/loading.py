"""Loading rows: one load per row, in this process by a future that is shared, across processes by a lease.

What is missed while loads are on their way goes together in the next one: the more is missed, the less a row costs.
"""

import asyncio
import contextvars
import math
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar
from uuid import uuid4

from app.errors import Unavailable
from app.services.breaker import Breaker
from app.services.near_cache import NearCache
from app.services.ports import Clock
from app.services.slots import Leased, Name, Slot, SlotCache

T = TypeVar("T")

Source = Literal["cache", "database", "stale"]

Load = Callable[[Sequence[Name]], Awaitable[dict[Name, Slot]]]
"""Slots from the database. Raises `Unavailable`."""


class Found(NamedTuple):
    """A slot and where it came from; of what came from the cache, whether from this process' own memory."""

    slot: Slot
    source: Source
    at_hand: bool = False


@dataclass(frozen=True)
class Patience:
    """In ms: how long a reader waits for the shared cache, for a load where a stale answer is at hand (`soft`) and
    where none is (`hard`), and before it goes the long way, which can say why there is no answer yet (`quick`); how
    long a lease lasts; how long a row is served stale before a load is tried again."""

    cache: int = 250
    quick: int = 500
    soft: int = 100
    hard: int = 2_500
    lease: int = 2_000
    throttle: int = 1_000


PATIENCE = Patience()

AT_A_TIME = 2
"""Loads that are on their way. Where PostgreSQL is quick one would do; a row that takes long shall not hold up all."""

TOGETHER = 200
"""Rows of one load, but for those of one request, which stay together: Redis answers nobody else while it grants their
leases."""

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 2.0, 50.0


@dataclass
class _Wanted:
    """Rows to be fetched for whoever waits for these futures, if need be `early`, although they are fresh. Rows that
    another process is loading are looked for again after a pause, and from `deadline` on, which begins when they are
    asked for first, read without its leave. `alone`: in company, it failed. A load is part of the trace in whose
    `context` it was wanted, that of several of the first one's."""

    futures: dict[Name, asyncio.Future[Found]]
    early: bool
    deadline: float = math.inf
    alone: bool = False
    pause_ms: float = _FIRST_PAUSE_MS
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class Loads:
    """The loads of one process, and the two stores that they go to, each behind its breaker."""

    def __init__(
        self,
        near: NearCache,
        cache: SlotCache,
        load: Load,
        breaker: Breaker,
        cache_breaker: Breaker,
        clock: Clock,
        patience: Patience = PATIENCE,
    ) -> None:
        """`breaker` guards the database, `cache_breaker` the shared cache."""
        self.near, self.clock, self.patience = near, clock, patience
        self._cache, self._load = cache, load
        self._breaker, self._cache_breaker = breaker, cache_breaker
        self._loading: dict[Name, asyncio.Future[Found]] = {}
        self._wanted: deque[_Wanted] = deque()
        self._early: deque[_Wanted] = deque()
        self._background: set[asyncio.Task[None]] = set()
        self._at_work = 0
        self._not_before: dict[Name, int] = {}
        self._load_ms = 5.0

    def forget(self, name: Name) -> None:
        """Whoever asks for this row from now on does not join a load that may have begun before."""
        self._loading.pop(name, None)

    def forget_all(self) -> None:
        self._loading.clear()

    @property
    def under_way(self) -> bool:
        """Whether anything is being loaded."""
        return bool(self._loading)

    def throttle(self, name: Name) -> None:
        """A load has failed, or takes long, and the row is served stale: it is not loaded again for a while."""
        self._not_before[name] = self.clock() + self.patience.throttle

    def throttled(self, name: Name) -> bool:
        return self._not_before.get(name, 0) > self.clock()

    def start(self, names: Sequence[Name], *, early: bool = False) -> dict[Name, asyncio.Future[Found]]:
        """What will be known of these rows; those that nobody in this process is fetching are fetched from now on.
        `early`: although they are fresh."""
        futures = {name: self._loading.get(name) for name in names}
        new = [name for name, future in futures.items() if future is None]
        if new:
            loop = asyncio.get_running_loop()
            started = {name: loop.create_future() for name in new}
            self._loading.update(started)
            self._want(_Wanted(started, early))
        return {name: self._loading[name] for name in names}

    async def cached(self, names: Sequence[Name]) -> Sequence[Slot | None] | None:
        """What the shared cache has of these rows; None where it is away, or slower than the database would be."""
        return await self._ask_cache(lambda: self._cache.get(list(names)))

    async def _ask_cache(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        try:
            self._cache_breaker.check()
        except Unavailable:
            return None
        try:
            async with asyncio.timeout(self.patience.cache / 1000):
                answer = await ask()
        except (Unavailable, TimeoutError):
            self._cache_breaker.failed()
            return None
        self._cache_breaker.succeeded()
        return answer

    def keep(self, name: Name, slot: Slot, epoch: int) -> None:
        """Into the near cache. The refresh time is drawn so that the more processes and the slower the load,
        the earlier somebody refreshes (XFetch: Vattani, Chierichetti, Lowenstein 2015). A load that is under way may
        have begun before this was there: nobody joins it any more."""
        self.forget(name)
        early_ms = self._load_ms * -math.log(1.0 - random.random())  # noqa: S311 - spreads load only
        self.near.put(name, slot, slot.fresh_until - int(early_ms) - 1, epoch)

    def _want(self, wanted: _Wanted) -> None:
        (self._early if wanted.early else self._wanted).append(wanted)
        if self._at_work < AT_A_TIME:
            self._at_work += 1
            task = asyncio.create_task(self._work())
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _work(self) -> None:
        """Until nothing is wanted. Those who wait go before those who refresh."""
        try:
            while queue := self._wanted or self._early:
                together = [queue.popleft()]
                rows = len(together[0].futures)
                while queue and not together[0].alone and not queue[0].alone:
                    rows += len(queue[0].futures)
                    if rows > TOGETHER:
                        break
                    together.append(queue.popleft())
                await asyncio.create_task(self._fetch_into(together), context=together[0].context)
        finally:
            self._at_work -= 1

    async def _fetch_into(self, together: Sequence[_Wanted]) -> None:
        """Settle every future, or want it again, whatever happens: a reader must never wait for one that nobody works
        on."""
        error: Exception = Unavailable("the price could not be read")
        others: set[Name] = set()
        is_defect = False
        try:
            others = await self._fetch(together)
        except Exception as failure:  # handed on to whoever waits
            error, is_defect = failure, not isinstance(failure, Unavailable)
        finally:
            for wanted in together:
                if is_defect and len(together) > 1:  # of one of them, which takes the others not with it
                    self._want(replace(wanted, alone=True, deadline=-math.inf))  # the leases went with this try
                else:
                    self._end(wanted, others, error)

    def _end(self, wanted: _Wanted, others: Collection[Name], error: Exception) -> None:
        """Nobody works on these rows any more: with `error`, where there is no answer, but for `others`, which are
        wanted again."""
        again = {name: future for name, future in wanted.futures.items() if name in others}
        for name, future in wanted.futures.items():
            if name in again:
                continue
            if self._loading.get(name) is future:
                del self._loading[name]
            if not future.done():
                future.set_exception(error)
                future.exception()  # looked at: a background refresh has nobody who waits
        if again:
            pause_ms = min(wanted.pause_ms * 2, _LONGEST_PAUSE_MS)
            later = replace(wanted, futures=again, pause_ms=pause_ms)
            asyncio.get_running_loop().call_later(wanted.pause_ms / 1000, self._want, later)

    async def _fetch(self, together: Sequence[_Wanted]) -> set[Name]:
        """Lease, load and fill; the rows that another process is loading."""
        futures: dict[Name, list[asyncio.Future[Found]]] = defaultdict(list)
        overdue: set[Name] = set()
        for wanted in together:
            late = self.clock() > wanted.deadline
            wanted.deadline = min(wanted.deadline, self.clock() + self.patience.lease)
            for name, future in wanted.futures.items():
                futures[name].append(future)
                if late:
                    overdue.add(name)
        token, names = uuid4().hex, list(futures)
        mine, others = [], set[Name]()
        with self.near.reading(names):
            epoch = self.near.epoch
            leases = await self._lease(names, token, together[0].early)
            if leases is None:
                self._settle(futures, await self._from_database(names, len(together)), "database")
                return set()
            for name, (slot, granted) in zip(names, leases, strict=True):
                if granted:
                    mine.append(name)
                elif slot is not None and self.clock() < slot.fresh_until:
                    self.keep(name, slot, epoch)
                    self._settle(futures, {name: slot}, "cache")
                else:
                    others.add(name)
        overdue &= others
        if mine or overdue:
            loaded = await self._from_database([*mine, *overdue], len(together))
            if mine:
                filled = {name: slot for name, slot in loaded.items() if name not in overdue}
                await self._ask_cache(lambda: self._cache.fill(filled, token))
            self._settle(futures, loaded, "database")  # right, whether or not the cache took it
        return others - overdue

    async def _lease(self, names: list[Name], token: str, early: bool) -> list[Leased] | None:
        now, lease_ms = self.clock(), self.patience.lease
        return await self._ask_cache(lambda: self._cache.lease(names, token, now, lease_ms, early=early))

    async def _from_database(self, names: Sequence[Name], asked: int) -> dict[Name, Slot]:
        """Also into the near cache: it may be newer than what the shared cache has as yet, and whoever has been given
        it shall not be given anything older afterwards. The breaker is told of a failure once for each who `asked`."""
        self._breaker.check()
        started = self.clock()
        with self.near.reading(names):
            epoch = self.near.epoch
            try:
                async with asyncio.timeout(self.patience.hard / 1000):
                    loaded = await self._load(names)
            except (Unavailable, TimeoutError) as error:
                for _ in range(asked):
                    self._breaker.failed()
                reason = error or "PostgreSQL did not answer in time"
                raise Unavailable(f"the price could not be read: {reason}") from error
            self._breaker.succeeded()
            self._load_ms += (self.clock() - started - self._load_ms) / 8
            for name, slot in loaded.items():
                self.keep(name, slot, epoch)
        return loaded

    def _settle(
        self, futures: dict[Name, list[asyncio.Future[Found]]], slots: dict[Name, Slot], source: Source
    ) -> None:
        for name, slot in slots.items():
            self._not_before.pop(name, None)
            found = Found(slot, source)
            for future in futures[name]:
                if not future.done():
                    future.set_result(found)
