"""Celery: its configuration, and starting a task by its name. Tasks are hints; losing one loses nothing."""

from collections.abc import Sequence

import celery
import kombu.exceptions
from opentelemetry import propagate, trace

from app.errors import Unavailable

APPLY_EVENTS = "pricing.apply_events"
RECALCULATE = "pricing.recalculate"
REPRICE_DUE = "pricing.reprice_due"

_tracer = trace.get_tracer(__name__)

TIME_LIMIT_S = 300
VISIBILITY_TIMEOUT_S = 900
"""Celery redelivers what is not acknowledged by then, so every task must end well before."""


def make_celery(broker_url: str) -> celery.Celery:
    """The Celery application that publishers and workers share. It registers no task."""
    application = celery.Celery("pricing", broker=broker_url)
    application.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_time_limit=TIME_LIMIT_S,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue="pricing",
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=15,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "max_retries": 1,
        },
    )
    return application


class TaskQueue:
    def __init__(self, application: celery.Celery) -> None:
        self._application = application

    def apply_events(self, scope: str, entries: Sequence[tuple[str, str]]) -> None:
        """Apply stream entries, (stream id, event as JSON) each, under the lock on `scope`."""
        self._send(APPLY_EVENTS, [scope, entries])

    def recalculate(self, task_id: str) -> None:
        """Go on with a recalculation."""
        self._send(RECALCULATE, [task_id])

    def reprice_due(self) -> None:
        """Reprice the sheets whose time is over."""
        self._send(REPRICE_DUE, [])

    def _send(self, name: str, arguments: Sequence[object]) -> None:
        attributes = {
            "messaging.system": "celery",
            "messaging.destination.name": "pricing",
            "celery.task": name,
        }
        with _tracer.start_as_current_span(f"send {name}", kind=trace.SpanKind.PRODUCER, attributes=attributes):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            try:
                self._application.send_task(name, args=arguments, headers=headers)
            except (kombu.exceptions.OperationalError, ConnectionError) as error:
                raise Unavailable(f"the task queue is not available: {error}") from error
