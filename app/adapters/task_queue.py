"""Celery: its configuration, and starting a task by its name. Tasks are hints; losing one loses nothing."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import celery
import kombu.exceptions
import kombu.transport.redis
import kombu.transport.virtual
import redis
from opentelemetry import propagate
from opentelemetry.trace import SpanKind

from app.adapters.locks import HINT_LIFE_S, Locks
from app.adapters.redis_clients import unavailable_if_down
from app.adapters.task_names import (
    APPLY_EVENTS,
    BOUNDARY_SCOPE,
    EVENTS_QUEUE,
    JOBS_QUEUE,
    RECALCULATE,
    REPRICE_DUE,
    TELEMETRY_QUEUE,
    WRITE_TELEMETRY,
    telemetry_scope,
)
from app.domain.task import task_scope
from app.errors import Unavailable
from app.observability.tracing import messaging, span

MANY = 100
"""So many tasks in the queue, and nobody is taking them."""

JOB_HINT_LIFE_S = 60.0
"""A recalculation's hints wait longer than others, in seconds: with sixteen parts and two workers that take turns of a
second, one comes round every eight."""

QUEUES = (EVENTS_QUEUE, JOBS_QUEUE, TELEMETRY_QUEUE)
_QUEUE_OF = {RECALCULATE: JOBS_QUEUE, WRITE_TELEMETRY: TELEMETRY_QUEUE}
"""Of tasks that do not go where most do."""

SENT_AT, HINTED_SCOPE = "sent_at", "hinted_scope"
"""Headers of a task: when it was queued, in seconds since 1970, and the scope whose hint it is."""

TIME_LIMIT_S = 300
"""Whoever works on one task for longer is killed."""


class _QoS(kombu.transport.virtual.QoS):
    """What this process has taken is noted here and nowhere else. What it gives back goes to the front of the queue.
    Over a connection that is lost nothing can go: what is left then is let go, for it is hints."""

    def restore_unacked(self) -> list[Any]:
        self._flush()  # type: ignore[no-untyped-call]
        self._give_back(list(reversed(self._delivered.values())))
        self._delivered.clear()
        return []

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue and delivery_tag in self._delivered:
            self._give_back([self._delivered[delivery_tag]])
        self.ack(delivery_tag)  # type: ignore[no-untyped-call]

    def _give_back(self, messages: Sequence[Any]) -> None:
        channel = self.channel
        if channel.connection is None or channel.connection.client is None:
            return
        with suppress(*channel.connection_errors), channel.conn_or_acquire() as client:
            for message in messages:
                place = message.delivery_info
                channel._do_restore_message(message.serializable(), place["exchange"], place["routing_key"], client)


class _Channel(kombu.transport.redis.Channel):
    """Without kombu's note in Redis of what is taken and not acknowledged. The hints of a worker that is killed are
    given again within seconds; the note would bring them back after a visibility timeout of minutes, when the work is
    done, run twice what takes longer than that, and be written twice for every event."""

    ack_emulation = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.QoS = _QoS  # type: ignore[assignment]
        self._sender: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """To send with, always the same: kombu makes one for each message, which takes it as long as to send it."""
        if asynchronous:
            return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        if self._sender is None or self._sender.connection_pool is not self.pool:
            self._sender = super()._create_client()  # type: ignore[no-untyped-call]
        return self._sender


class Transport(kombu.transport.redis.Transport):
    """Redis as kombu has it, but for workers that outlive its restart."""

    Channel = _Channel


def make_celery(broker_url: str) -> celery.Celery:
    """The Celery application that publishers and workers share. It registers no task."""
    application = celery.Celery("pricing", broker=broker_url)
    application.conf.update(
        broker_transport=f"{__name__}:{Transport.__name__}",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_time_limit=TIME_LIMIT_S,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=EVENTS_QUEUE,
        task_queues={queue: {} for queue in QUEUES},
        task_routes={name: {"queue": queue} for name, queue in _QUEUE_OF.items()},
        worker_prefetch_multiplier=1,
        # A task that is begun twice does no harm; one that is ended looks like a death of the events in its hands.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "max_retries": 1,
        },
    )
    return application


class TaskQueue:
    """Every method that names work queues a hint, unless one for the same work is on its way. Raises `Unavailable`."""

    def __init__(self, application: celery.Celery, client: redis.Redis, locks: Locks) -> None:
        self._application, self._client, self._locks = application, client, locks

    def apply_events(self, scope: str) -> None:
        """Work off the inbox of a scope."""
        self._hint(scope, APPLY_EVENTS, [scope])

    def send_hinted(self, scope: str) -> None:
        """Queue the task of a hint that was given when the inbox of the scope was filled."""
        self._send(APPLY_EVENTS, [scope], scope)

    def recalculate(self, task_id: str, part: int | None = None) -> None:
        """Work on a part of a recalculation for a turn, or begin it."""
        self._hint(task_scope(task_id, part), RECALCULATE, [task_id, part], JOB_HINT_LIFE_S)

    def reprice_due(self) -> None:
        """Reprice the sheets whose time is over."""
        self._hint(BOUNDARY_SCOPE, REPRICE_DUE, [])

    def write_telemetry(self, sink: str) -> None:
        """Write records of requests to a sink."""
        self._hint(telemetry_scope(sink), WRITE_TELEMETRY, [sink], JOB_HINT_LIFE_S)

    def is_short(self, queue: str = EVENTS_QUEUE) -> bool:
        """Whether workers are taking tasks: where none is there, more hints would only pile up."""
        with unavailable_if_down():
            return int(self._client.llen(queue)) < MANY

    def lengths(self) -> dict[str, int]:
        """How many tasks wait in each queue."""
        with unavailable_if_down(), self._client.pipeline(transaction=False) as pipeline:
            for queue in QUEUES:
                pipeline.llen(queue)
            return dict(zip(QUEUES, pipeline.execute(), strict=True))

    def _hint(self, scope: str, name: str, arguments: Sequence[object], life_s: float = HINT_LIFE_S) -> None:
        if self._locks.hint(scope, life_s):
            self._send(name, arguments, scope)

    def _send(self, name: str, arguments: Sequence[object], scope: str) -> None:
        queue = _QUEUE_OF.get(name, EVENTS_QUEUE)
        attributes = messaging("celery", "send", "send", queue) | {"celery.task": name}
        with span(f"send {name}", SpanKind.PRODUCER, attributes):
            headers: dict[str, str] = {SENT_AT: repr(time.time()), HINTED_SCOPE: scope}
            propagate.inject(headers)
            try:
                # A queue is there once something is in it: nothing is declared.
                self._application.send_task(name, args=arguments, headers=headers, declare=[])
            except (kombu.exceptions.OperationalError, ConnectionError) as error:
                raise Unavailable(f"the task queue is not available: {error}", upstream="broker") from error
