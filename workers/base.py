"""The base of every task: its span, its duration, one log line, and what our errors mean to Celery."""

import time
from typing import Any

import structlog
from celery import Task
from celery.exceptions import Retry
from opentelemetry import trace

from app.errors import Conflict, Overloaded, Unavailable
from app.observability import metrics
from app.observability.tracing import context_of

_tracer = trace.get_tracer(__name__)
_logger = structlog.get_logger(__name__)


class PricingTask(Task):
    """Retries what may pass: a store that is away, a timeout upstream, a lock that another run holds.

    Waits grow from 1 to 30 s with full jitter; after the last one the listener brings the events again.
    Everything else fails at once.
    """

    autoretry_for = (Unavailable, Overloaded, Conflict, ConnectionError, TimeoutError)
    max_retries = 8
    retry_backoff = 1
    retry_backoff_max = 30
    retry_jitter = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        outcome = "failed"
        traceparent = (self.request.headers or {}).get("traceparent") or self.request.get("traceparent")
        attributes: dict[str, str | int] = {
            "messaging.system": "celery",
            "messaging.destination.name": "pricing",
            "messaging.operation.type": "process",
            "messaging.message.id": self.request.id or "",
            "celery.retries": self.request.retries or 0,
        }
        with _tracer.start_as_current_span(
            f"process {self.name}",
            context=context_of(traceparent),
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
        ):
            try:
                result = super().__call__(*args, **kwargs)
                outcome = "succeeded"
                return result
            except Retry:
                outcome = "retried"
                raise
            finally:
                seconds = time.perf_counter() - started
                metrics.task_duration.labels(self.name, outcome).observe(seconds)
                _logger.info("task", task=self.name, outcome=outcome, ms=round(seconds * 1000, 3))
