"""Reading price sheets: near cache → Redis → PostgreSQL, stale rather than broken."""

import asyncio
from collections.abc import Collection, Sequence

from app.errors import Unavailable
from app.services.loading import Found, Loads
from app.services.slots import Name, Slot

_TOGETHER = 100
"""So many rows at most are asked for together with what others miss; more are a question of their own."""


class SheetReader:
    """The read path of one process."""

    def __init__(self, loads: Loads) -> None:
        self.near = loads.near
        self._loads = loads
        self._missed: set[Name] = set()
        self._bringing: asyncio.Task[None] | None = None
        self._brought: asyncio.Future[Collection[Name]] | None = None

    def concerned(self, where: str) -> bool:
        """Whether it matters to this process what is told of a row's `place`."""
        return self.near.concerned(where) or self._loads.under_way

    def told(self, name: Name, version: int) -> None:
        """A writer has stored `version` of this row: what was kept goes, and whoever asks from now on does not
        join a load that may have begun before."""
        self.near.told(name, version)
        self._loads.forget(name)

    def clear(self) -> None:
        """Forget everything, also what would be served stale."""
        self.near.clear()
        self._loads.forget_all()

    def lost(self) -> None:
        """The feed has broken, and may miss anything until it is heard again."""
        self.near.lost()
        self._loads.forget_all()

    def heard(self, sent_at: int) -> None:
        """The feed has brought everything up to `sent_at`, by the near cache's clock. After a silence nobody joins
        a load that began in it."""
        if not self.near.trusted:
            self._loads.forget_all()
        self.near.heard(sent_at)

    async def bring(self, names: Sequence[Name]) -> Collection[Name]:
        """Keep at hand what the shared cache has fresh of these rows, or the database, where nobody knows of any stale
        price; which of them came from there. What is not to be had, or not soon, is for `find` to do."""
        if not names or not self.near.keeps:
            return ()
        nowhere = await self._bring(names) if len(names) > _TOGETHER else await self._bring_together(names)
        now = self._loads.clock()
        wanted = [name for name in names if name in nowhere and self.near.fresh(name, now) is None] if nowhere else ()
        if not wanted:
            return ()
        futures = self._loads.start(wanted)
        done, _ = await asyncio.wait(futures.values(), timeout=self._loads.patience.quick / 1000)
        return {
            name
            for name, future in futures.items()
            if future in done and future.exception() is None and future.result().source == "database"
        }

    async def _bring_together(self, names: Sequence[Name]) -> Collection[Name]:
        """One question is on its way at a time; what is missed meanwhile goes together in the next."""
        self._missed.update(names)
        if self._brought is None:
            self._brought = asyncio.get_running_loop().create_future()
        brought = self._brought
        if self._bringing is None:
            self._bringing = asyncio.create_task(self._bring_in_turns())
        return await asyncio.shield(brought)

    async def _bring_in_turns(self) -> None:
        while (brought := self._brought) is not None:
            names, self._missed, self._brought = list(self._missed), set(), None
            try:
                brought.set_result(await self._bring(names))
            except Exception as error:  # a defect, handed on to whoever waits
                brought.set_exception(error)
        self._bringing = None

    async def _bring(self, names: Sequence[Name]) -> Collection[Name]:
        """From the shared cache; those of which nothing is known there or here, not even stale."""
        nowhere: set[Name] = set()
        with self.near.reading(names):
            now, epoch = self._loads.clock(), self.near.epoch
            slots = await self._loads.cached(names) or [None] * len(names)
            for name, slot in zip(names, slots, strict=True):
                if slot is None:
                    if self.near.last_known(name) is None:
                        nowhere.add(name)
                elif now < slot.fresh_until:
                    self._loads.keep(name, slot, epoch)
        return nowhere

    async def find(self, names: Sequence[Name]) -> dict[Name, Found]:
        """The same as `find_each`, but raises `Unavailable` where a row is nowhere to be had, not even stale."""
        found: dict[Name, Found] = {}
        for name, item in (await self.find_each(names)).items():
            if isinstance(item, Unavailable):
                raise item
            found[name] = item
        return found

    async def find_each(self, names: Sequence[Name]) -> dict[Name, Found | Unavailable]:
        """Every row's slot and where it came from, or why it is nowhere to be had, not even stale. At most one round
        trip to Redis for what is fresh there."""
        now = self._loads.clock()
        found: dict[Name, Found | Unavailable] = {}
        ask: list[Name] = []
        refresh: list[Name] = []
        for name in names:
            entry = self.near.fresh(name, now)
            if entry is None:
                ask.append(name)
                continue
            slot = entry.slot(name)
            found[name] = Found(slot, "cache", at_hand=True)
            if now >= entry.refresh_at:
                entry.refresh_at = slot.fresh_until
                refresh.append(name)
        self._loads.start(refresh, early=True)
        if not ask:
            return found
        stale: dict[Name, Slot] = {}
        missing: list[Name] = []
        with self.near.reading(ask):
            epoch = self.near.epoch
            slots = await self._loads.cached(ask) or [None] * len(ask)
            for name, kept in zip(ask, slots, strict=True):
                if kept is not None and now < kept.fresh_until:
                    self._loads.keep(name, kept, epoch)
                    found[name] = Found(kept, "cache")
                    continue
                missing.append(name)
                known = self._newest(kept, self.near.last_known(name))
                if known is not None and not known.unknown:
                    stale[name] = known
        if missing:
            found |= await self._load_or_stale(missing, stale)
        return found

    async def _load_or_stale(self, names: list[Name], stale: dict[Name, Slot]) -> dict[Name, Found | Unavailable]:
        throttled = {name for name in names if name in stale and self._loads.throttled(name)}
        wanted = [name for name in names if name not in throttled]
        futures = self._loads.start(wanted)
        if futures:
            patience = self._loads.patience.soft if all(name in stale for name in wanted) else self._loads.patience.hard
            await asyncio.wait(futures.values(), timeout=patience / 1000)
        found: dict[Name, Found | Unavailable] = {name: Found(stale[name], "stale") for name in throttled}
        for name, future in futures.items():
            if future.done() and future.exception() is None:
                found[name] = future.result()
            elif name in stale:
                self._loads.throttle(name)
                found[name] = Found(stale[name], "stale")
            elif future.done():
                # An error of each waiter's own: a shared one would gather the tracebacks of all.
                error = future.exception()
                if not isinstance(error, Unavailable):
                    raise RuntimeError(str(error)) from error
                found[name] = Unavailable(str(error))
            else:
                found[name] = Unavailable("the price could not be read in time")
        return found

    @staticmethod
    def _newest(*slots: Slot | None) -> Slot | None:
        return max((slot for slot in slots if slot is not None), key=lambda slot: slot.version, default=None)
