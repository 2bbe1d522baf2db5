"""The loop: receive into inboxes → hint, and the upkeep that goes on beside it.

An entry that was read is in an inbox until a worker acknowledges it. A hint only starts a Celery task, which may be
lost; inboxes in which something waits and at which nobody is get another. What a listener had read when it died is
reclaimed by another one.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from uuid import uuid4

import redis
import structlog

from app.adapters.breakers import APPLYING, CACHE, POSTGRESQL
from app.adapters.event_log import Entry
from app.adapters.inbox import Due, Filled
from app.adapters.task_names import JOBS_QUEUE
from app.bootstrap import Resources, now_ms
from app.domain.events import decode_event
from app.domain.positions import accepted_at_ms
from app.errors import MalformedEvent, Unavailable
from app.observability import metrics
from app.observability.tracing import consumer_span, messaging
from app.services.ports import BreakerState
from app.services.recalculation import hint_abandoned
from app.services.retention import forget_old
from listener import records
from listener.chore import Chore
from listener.gauges import measure

_logger = structlog.get_logger(__name__)

INBOX_LIMIT = 5_000
"""With so many entries in inboxes reading stops: the backlog stays in the stream."""

SAMPLE = 32
"""So many are read while a breaker is open, once nothing waits that was not tried: whether they can be applied is what
closes it."""

LOOK_INTERVAL_S = 1.0
UPKEEP_INTERVAL_S = 5.0
FORGET_INTERVAL_S = 60.0


class Loop:
    def __init__(self, resources: Resources, consumer: str, ring: threading.Event, stopping: threading.Event) -> None:
        self._resources, self._consumer = resources, consumer
        self._ring, self._stopping = ring, stopping
        self._settings, self._log = resources.settings, resources.log
        self._waiting = 0
        self._unsure = True
        self._hint = uuid4().hex
        self._paused_by: list[str] = []
        self._chores = [
            Chore(lambda: self._log.beat(consumer), UPKEEP_INTERVAL_S),
            Chore(self._look_at_inboxes, LOOK_INTERVAL_S),
            Chore(self._look_at_boundaries, LOOK_INTERVAL_S),
            Chore(lambda: measure(resources), LOOK_INTERVAL_S),
            Chore(self._reclaim, self._settings.reclaim_idle_s / 3),
            Chore(self._send_outbox, UPKEEP_INTERVAL_S),
            Chore(self._restart_tasks, UPKEEP_INTERVAL_S),
            Chore(self._trim, UPKEEP_INTERVAL_S),
            *records.chores(resources),
            Chore(self._log.forget_consumers, FORGET_INTERVAL_S),
            Chore(self._forget_old, FORGET_INTERVAL_S),
        ]

    def run(self) -> None:
        """Until `stopping`. A store that is away is waited for; the stream keeps everything meanwhile."""
        while not self._stopping.is_set():
            try:
                self._log.ensure_group()
                self._resources.accounts.begin()
                self._resources.records.ensure()
                while not self._stopping.is_set():
                    self._turn()
            except (Unavailable, redis.ResponseError) as error:
                # A ResponseError is a group that vanished with its server's data: made again above.
                _logger.warning("waiting for a store", error=str(error))
                self._stopping.wait(1.0)

    def _turn(self) -> None:
        self._ring.clear()
        for chore in self._chores:
            chore.do_if_due()
        entries = [] if self._is_full() else self._read()
        if len(entries) < self._settings.read_count:
            self._ring.wait(min(self._settings.poll_interval_s, *(chore.due_in_s() for chore in self._chores)))

    def _read(self) -> Sequence[Entry]:
        """Read, and hand over. After an error that came between it is not known what was read: it is read once more."""
        if self._unsure:
            for entries in self._log.unacknowledged(self._consumer, self._settings.read_count):
                self._hand_over(entries, "read_again")
        self._unsure = True
        most = SAMPLE if self._paused_by else self._settings.read_count
        entries, filled = self._log.receive(self._consumer, most, self._hint)
        self._send_hints(entries, filled, "read")
        self._unsure, self._hint = False, uuid4().hex
        return entries

    def _is_full(self) -> bool:
        """Whether more in the inboxes would only wait there: for workers, or for what a breaker protects."""
        return self._waiting > INBOX_LIMIT or bool(self._paused_by and _fresh(self._resources.inboxes.waiting()))

    def _hand_over(self, entries: Sequence[Entry], how: str) -> None:
        """Into the inboxes of their scopes, as those that are new are from the beginning."""
        if entries:
            ids: dict[str, list[str]] = defaultdict(list)
            for entry in entries:
                ids[entry.scope].append(entry.stream_id)
            self._send_hints(entries, self._resources.inboxes.put(ids, self._hint), how)

    def _send_hints(self, entries: Sequence[Entry], filled: Mapping[str, Filled], how: str) -> None:
        """A task for each inbox that has been filled and wants one."""
        if not entries:
            return
        scopes: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            scopes[entry.scope].append(entry)
        self._waiting = max(self._waiting, sum(inbox.waiting for inbox in filled.values()))
        for scope, group in scopes.items():
            attributes = messaging("redis", "receive", "receive", self._settings.event_stream) | {
                "messaging.batch.message_count": len(group),
                "pricing.scope": scope,
                "pricing.queue_wait_ms": max(0, now_ms() - min(accepted_at_ms(entry.stream_id) for entry in group)),
            }
            with consumer_span("receive market_events", [_traceparent(entry) for entry in group], attributes):
                if filled[scope].wants_task:
                    self._resources.queue.send_hinted(scope)
                _logger.info("received", scope=scope, events=len(group), how=how)
        metrics.events_received.labels(how).inc(len(entries))

    def _look_at_inboxes(self) -> None:
        """Hint for inboxes in which something waits and at which nobody is; see what stands in the way."""
        tallies = self._resources.breakers.tallies()
        for name, tally in tallies.items():
            metrics.breaker_state.labels(name).set(list(BreakerState).index(tally.state))
        paused_by = [name for name in (POSTGRESQL, CACHE, APPLYING) if tallies[name].state is not BreakerState.CLOSED]
        if paused_by != self._paused_by:
            self._paused_by = paused_by
            if paused_by:
                _logger.warning("reading is paused", breakers={name: tallies[name].reason for name in paused_by})
            else:
                _logger.info("reading goes on")
        waiting = self._resources.inboxes.waiting()
        self._waiting = sum(map(sum, waiting.values()))
        if self._resources.queue.is_short():
            # While one try at a time is let through, it has to be one that says something: what failed before would, in
            # its turns, keep the fresh ones from theirs.
            scopes = (paused_by and _fresh(waiting)) or list(waiting)
            for scope in self._resources.locks.idle(scopes):
                self._resources.queue.apply_events(scope)

    def _look_at_boundaries(self) -> float:
        """Hint where a promotion began or ended; when to look again."""
        with self._resources.store.transaction() as tx:
            due_in_s = tx.prices.next_boundary_s()
        metrics.boundary_overdue.set(max(0.0, -due_in_s) if due_in_s is not None else 0.0)
        if due_in_s is not None and due_in_s <= 0:
            self._resources.queue.reprice_due()
        return due_in_s if due_in_s is not None and 0 < due_in_s < LOOK_INTERVAL_S else LOOK_INTERVAL_S

    def _reclaim(self) -> None:
        entries = self._log.reclaim(self._consumer, self._settings.reclaim_idle_s, self._settings.read_count)
        self._hand_over(entries, "reclaimed")

    def _send_outbox(self) -> None:
        """Events whose API process died, or lost Redis, between its commit and its publish."""
        with self._resources.store.transaction() as tx:
            unsent = tx.events.outbox(self._settings.read_count)
            for event in [decode_event(event) for _, event in unsent]:
                attributes = messaging("postgresql", "take", "receive", "outbox")
                with consumer_span("take from outbox", [event.traceparent], attributes):
                    _, new = self._resources.publisher.publish(event)
                metrics.events_published.labels(event.type.value, "rules").inc(new)
            tx.events.drop_outbox([event_id for event_id, _ in unsent])

    def _restart_tasks(self) -> None:
        if self._resources.queue.is_short(JOBS_QUEUE):
            hint_abandoned(self._resources.store, self._resources.locks, self._resources.queue)

    def _forget_old(self) -> None:
        forget_old(self._resources.store, self._settings.retention_days)

    def _trim(self) -> None:
        self._log.trim()


def _fresh(waiting: Mapping[str, Due]) -> list[str]:
    """Scopes with entries that were not tried yet."""
    return [scope for scope, due in waiting.items() if due.fresh]


def _traceparent(entry: Entry) -> str | None:
    """What the receiving of an entry continues; of one that is no event, which whoever applies it sets aside with the
    reason, nothing."""
    try:
        return decode_event(entry.event).traceparent
    except MalformedEvent:
        return None
