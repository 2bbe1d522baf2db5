"""The loop: reclaim → read → group → dispatch, and the upkeep that goes on beside it.

An entry is this consumer's until a worker acknowledges it. Dispatching only starts a Celery task, which may
be lost; what nobody acknowledges in time is reclaimed and dispatched again, by whichever listener is there.
"""

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import redis
import structlog

from app.adapters.event_log import Entry
from app.bootstrap import Resources, now_ms
from app.domain.events import Event, EventType, decode_event
from app.errors import MalformedEvent, Unavailable
from app.observability import metrics
from app.observability.tracing import consumer_span

_logger = structlog.get_logger(__name__)

PARTITIONS = 16
"""Scopes that narrow events are spread over, by their subject; each has one lock."""

CATALOGUE = "catalogue"
"""The scope of events that concern many products."""

BOUNDARY_INTERVAL_S = 1.0
UPKEEP_INTERVAL_S = 5.0
FORGET_INTERVAL_S = 60.0
ABANDONED_S = 120.0
"""A recalculation that nobody moved for this long is started again; one batch takes a few seconds."""


class Loop:
    def __init__(self, resources: Resources, consumer: str, ring: threading.Event, stopping: threading.Event) -> None:
        self._resources, self._consumer = resources, consumer
        self._ring, self._stopping = ring, stopping
        self._settings, self._log = resources.settings, resources.log
        self._chores = [
            Chore(lambda: self._log.beat(consumer), UPKEEP_INTERVAL_S),
            Chore(self._reprice_due, BOUNDARY_INTERVAL_S),
            Chore(self._reclaim, self._settings.reclaim_idle_s / 3),
            Chore(self._send_outbox, UPKEEP_INTERVAL_S),
            Chore(self._restart_tasks, UPKEEP_INTERVAL_S),
            Chore(self._trim, UPKEEP_INTERVAL_S),
            Chore(self._log.forget_consumers, FORGET_INTERVAL_S),
        ]

    def run(self) -> None:
        """Until `stopping`. A store that is away is waited for; the stream keeps everything meanwhile."""
        while not self._stopping.is_set():
            try:
                self._log.ensure_group()
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
        entries = self._log.read(self._consumer, self._settings.read_count)
        self._dispatch(entries, "read")
        if len(entries) < self._settings.read_count:
            self._ring.wait(self._settings.poll_interval_s)

    def _dispatch(self, entries: Sequence[Entry], how: str) -> None:
        """One task per group of events that share a scope, in the order of the stream."""
        groups: dict[str, list[tuple[Entry, Event]]] = defaultdict(list)
        for entry in entries:
            try:
                event = decode_event(entry.event or b"")
            except MalformedEvent as error:
                self._log.dead_letter(entry, str(error), 1)
                continue
            groups[scope_of(event)].append((entry, event))
        for scope, group in groups.items():
            attributes: dict[str, str | int] = {
                "messaging.system": "redis",
                "messaging.destination.name": self._settings.event_stream,
                "messaging.operation.type": "receive",
                "messaging.batch.message_count": len(group),
                "messaging.message.id": group[0][1].id,
            }
            with consumer_span("receive market_events", [event.traceparent for _, event in group], attributes):
                self._resources.queue.apply_events(
                    scope, [(entry.stream_id, (entry.event or b"").decode()) for entry, _ in group]
                )
                _logger.info("dispatched", scope=scope, events=len(group), how=how)
        metrics.events_dispatched.labels(how).inc(len(entries))

    def _reclaim(self) -> None:
        """Dispatch again what was not acknowledged. An entry that an attempt failed at goes alone, so that a
        poisonous one takes no others with it."""
        together = []
        for entry, failed in self._log.reclaim(
            self._consumer, self._settings.reclaim_idle_s, self._settings.read_count
        ):
            if failed >= self._settings.max_attempts:
                self._log.dead_letter(entry, f"{failed} attempts failed", failed)
            elif failed:
                self._dispatch([entry], "reclaimed")
            else:
                together.append(entry)
        self._dispatch(together, "reclaimed")

    def _reprice_due(self) -> None:
        with self._resources.store.transaction() as tx:
            due = len(tx.prices.due(now_ms(), 1)) > 0
        if due:
            self._resources.queue.reprice_due()

    def _send_outbox(self) -> None:
        """Events whose API process died, or lost Redis, between its commit and its publish."""
        with self._resources.store.transaction() as tx:
            unsent = tx.events.outbox(self._settings.read_count)
            for event in [decode_event(event) for _, event in unsent]:
                with consumer_span("take from outbox", [event.traceparent], {"messaging.system": "postgresql"}):
                    self._log.publish(event)
            tx.events.drop_outbox([event_id for event_id, _ in unsent])

    def _restart_tasks(self) -> None:
        with self._resources.store.transaction() as tx:
            abandoned = tx.tasks.abandoned(ABANDONED_S, limit=10)
        for task_id in abandoned:
            self._resources.queue.recalculate(task_id)

    def _trim(self) -> None:
        self._log.trim()


class Chore:
    """Something to do now and then, in seconds."""

    def __init__(self, do: Callable[[], None], interval_s: float) -> None:
        self._do, self._interval_s = do, interval_s
        self._due = 0.0

    def do_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval_s
            self._do()


def scope_of(event: Event) -> str:
    """The lock that an event's task runs under: one of a few for a single product's, one for wide ones."""
    wide = event.subject == "*" or event.type in (EventType.RECALCULATE, EventType.POLICY_CHANGED)
    return CATALOGUE if wide else f"products:{zlib.crc32(event.subject.encode()) % PARTITIONS}"
