"""Reading price sheets: near cache → Redis → PostgreSQL, one load per row, stale rather than broken."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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
    slot: Slot
    source: Source


@dataclass(frozen=True)
class Patience:
    """In ms: how long a reader waits for the shared cache, for a load where a stale answer is at hand (`soft`) and
    where none is (`hard`); how long a lease lasts; how long a row is served stale before a load is tried again."""

    cache: int = 250
    soft: int = 100
    hard: int = 3_000
    lease: int = 2_000
    throttle: int = 1_000


class SheetReader:
    """The read path of one process."""

    def __init__(
        self,
        near: NearCache,
        cache: SlotCache,
        load: Load,
        breaker: Breaker,
        cache_breaker: Breaker,
        clock: Clock,
        patience: Patience = Patience(),
    ) -> None:
        """`breaker` guards the database, `cache_breaker` the shared cache."""
        self.near = near
        self._cache, self._load, self._clock, self._patience = cache, load, clock, patience
        self._breaker, self._cache_breaker = breaker, cache_breaker
        self._loading: dict[Name, asyncio.Future[Found]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._not_before: dict[Name, int] = {}
        self._load_ms = 5.0

    def told(self, name: Name, version: int) -> None:
        """A writer has stored `version` of this row: what was kept goes, and whoever asks from now on does not
        join a load that may have begun before."""
        self.near.told(name, version)
        self._loading.pop(name, None)

    def clear(self) -> None:
        """Forget everything, also what would be served stale."""
        self.near.clear()
        self._loading.clear()

    def lost(self) -> None:
        """The feed has broken, and may miss anything until it is heard again."""
        self.near.lost()
        self._loading.clear()

    def heard(self, sent_at: int) -> None:
        """The feed has brought everything up to `sent_at`, by the near cache's clock. After a silence nobody joins
        a load that began in it."""
        if not self.near.trusted:
            self._loading.clear()
        self.near.heard(sent_at)

    async def bring(self, names: Sequence[Name]) -> None:
        """Keep at hand what the shared cache has fresh of these rows. All else is for `find` to do."""
        if not names or not self.near.trusted:
            return
        now, epoch = self._clock(), self.near.epoch
        slots = await self._ask_cache(lambda: self._cache.get(list(names)))
        for name, slot in zip(names, slots or (), strict=slots is not None):
            if slot is not None and now < slot.fresh_until:
                self._keep(name, slot, epoch)

    async def find(self, names: Sequence[Name]) -> dict[Name, Found]:
        """Every row's slot and where it came from. At most one round trip to Redis for what is fresh there.

        Raises `Unavailable` where a row is nowhere to be had, not even stale.
        """
        now = self._clock()
        found: dict[Name, Found] = {}
        ask: list[Name] = []
        refresh: list[Name] = []
        for name in names:
            entry = self.near.fresh(name, now)
            if entry is None:
                ask.append(name)
                continue
            found[name] = Found(entry.slot, "cache")
            if now >= entry.refresh_at:
                entry.refresh_at = entry.slot.fresh_until
                refresh.append(name)
        self._start(refresh, early=True)
        if not ask:
            return found
        epoch = self.near.epoch
        slots = await self._ask_cache(lambda: self._cache.get(ask)) or [None] * len(ask)
        stale: dict[Name, Slot] = {}
        missing: list[Name] = []
        for name, slot in zip(ask, slots, strict=True):
            if slot is not None and now < slot.fresh_until:
                self._keep(name, slot, epoch)
                found[name] = Found(slot, "cache")
                continue
            missing.append(name)
            known = self._newest(slot, self.near.last_known(name))
            if known is not None and not known.unknown:
                stale[name] = known
        if missing:
            found |= await self._load_or_stale(missing, stale)
        return found

    async def _ask_cache(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the shared cache answers; None where it is away, or slower than the database would be."""
        try:
            self._cache_breaker.check()
        except Unavailable:
            return None
        try:
            async with asyncio.timeout(self._patience.cache / 1000):
                answer = await ask()
        except (Unavailable, TimeoutError):
            self._cache_breaker.failed()
            return None
        self._cache_breaker.succeeded()
        return answer

    async def _load_or_stale(self, names: list[Name], stale: dict[Name, Slot]) -> dict[Name, Found]:
        now = self._clock()
        throttled = {name for name in names if name in stale and self._not_before.get(name, 0) > now}
        wanted = [name for name in names if name not in throttled]
        self._start([name for name in wanted if name not in self._loading], early=False)
        # `_start` has run no other task yet, so all that is wanted is there.
        futures = {name: self._loading[name] for name in wanted}
        if futures:
            patience = self._patience.soft if all(name in stale for name in wanted) else self._patience.hard
            await asyncio.wait(futures.values(), timeout=patience / 1000)
        found = {name: Found(stale[name], "stale") for name in throttled}
        for name, future in futures.items():
            if future.done() and future.exception() is None:
                found[name] = future.result()
            elif name in stale:
                self._not_before[name] = self._clock() + self._patience.throttle
                found[name] = Found(stale[name], "stale")
            elif future.done():
                # An error of each waiter's own: a shared one would gather the tracebacks of all.
                error = future.exception()
                raise (Unavailable if isinstance(error, Unavailable) else RuntimeError)(str(error)) from error
            else:
                raise Unavailable("the price could not be read in time")
        return found

    def _start(self, names: list[Name], *, early: bool) -> None:
        """Fetch rows that nobody in this process is fetching; their futures get the outcome."""
        names = [name for name in names if name not in self._loading]
        if not names:
            return
        loop = asyncio.get_running_loop()
        futures = {name: loop.create_future() for name in names}
        self._loading.update(futures)
        task = asyncio.create_task(self._fetch_into(futures, early))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _fetch_into(self, futures: dict[Name, asyncio.Future[Found]], early: bool) -> None:
        """Settle every future, whatever happens: a reader must never wait for one that nobody works on."""
        error: Exception = Unavailable("the price could not be read")
        try:
            await self._fetch(futures, early)
        except Exception as failure:  # handed on to whoever waits
            error = failure
        finally:
            for name, future in futures.items():
                if self._loading.get(name) is future:
                    del self._loading[name]
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # looked at: a background refresh has nobody who waits

    async def _fetch(self, futures: dict[Name, asyncio.Future[Found]], early: bool) -> None:
        """Lease, load and fill; wait for the rows that another process is loading."""
        token = uuid4().hex
        waiting = list(futures)
        deadline = self._clock() + self._patience.lease
        pause_ms = 2.0
        while waiting:
            epoch = self.near.epoch
            leases = await self._lease(waiting, token, early)
            if leases is None:
                self._settle(futures, await self._from_database(waiting), "database", epoch)
                return
            mine, others = [], []
            for name, (slot, granted) in zip(waiting, leases, strict=True):
                if granted:
                    mine.append(name)
                elif slot is not None and self._clock() < slot.fresh_until:
                    self._settle(futures, {name: slot}, "cache", epoch)
                else:
                    others.append(name)
            if mine:
                epoch = self.near.epoch
                loaded = await self._from_database(mine)
                await self._fill(loaded, token)
                self._settle(futures, loaded, "database", epoch)
            waiting = others
            if waiting:
                if self._clock() > deadline:
                    self._settle(futures, await self._from_database(waiting), "database", epoch)
                    return
                await asyncio.sleep(pause_ms / 1000)
                pause_ms = min(pause_ms * 2, 50)

    async def _lease(self, names: list[Name], token: str, early: bool) -> list[Leased] | None:
        now, lease_ms = self._clock(), self._patience.lease
        return await self._ask_cache(lambda: self._cache.lease(names, token, now, lease_ms, early=early))

    async def _from_database(self, names: Sequence[Name]) -> dict[Name, Slot]:
        self._breaker.check()
        started = self._clock()
        try:
            async with asyncio.timeout(self._patience.hard / 1000):
                loaded = await self._load(names)
        except (Unavailable, TimeoutError) as error:
            self._breaker.failed()
            raise Unavailable(f"the price could not be read: {error or 'PostgreSQL did not answer in time'}") from error
        self._breaker.succeeded()
        self._load_ms += (self._clock() - started - self._load_ms) / 8
        return loaded

    async def _fill(self, loaded: dict[Name, Slot], token: str) -> None:
        """The answer is right whether or not this succeeds."""
        await self._ask_cache(lambda: self._cache.fill(loaded, token))

    def _settle(
        self, futures: dict[Name, asyncio.Future[Found]], slots: dict[Name, Slot], source: Source, epoch: int
    ) -> None:
        for name, slot in slots.items():
            self._not_before.pop(name, None)
            if source == "cache":
                self._keep(name, slot, epoch)
            if not futures[name].done():
                futures[name].set_result(Found(slot, source))

    def _keep(self, name: Name, slot: Slot, epoch: int) -> None:
        """Into the near cache. The refresh time is drawn so that the more processes and the slower the load,
        the earlier somebody refreshes (XFetch: Vattani, Chierichetti, Lowenstein 2015)."""
        early_ms = self._load_ms * -math.log(1.0 - random.random())  # noqa: S311 - spreads load only
        self.near.put(name, slot, slot.fresh_until - int(early_ms) - 1, epoch)

    @staticmethod
    def _newest(*slots: Slot | None) -> Slot | None:
        return max((slot for slot in slots if slot is not None), key=lambda slot: slot.version, default=None)
