"""The base of every task: its breakers, its span, its duration, one log line, and what our errors mean to Celery."""

import random
import time
from contextlib import suppress
from typing import Any

import structlog
from celery import Task
from celery.exceptions import Reject
from opentelemetry.trace import SpanKind

from app import stopping
from app.adapters.task_queue import HINTED_SCOPE, SENT_AT
from app.errors import TRANSIENT, Conflict, LockLost, Overloaded, Unavailable
from app.observability import metrics
from app.observability.tracing import Attributes, context_of, messaging, span
from app.services.ports import BreakerState
from workers.context import resources
from workers.leaving import last_batch

_logger = structlog.get_logger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class PricingTask(Task):
    """Repeats what may pass: a store that is away, a timeout upstream, a lock that was lost.

    Waits are what the upstream asked for, and full jitter on top: anything up to a bound that doubles from 1 to 30 s.
    After the last one the listener gives a new hint. Everything else fails at once, and counts against the work's own
    breaker.

    `breakers` are the names of those that have to let the work through; the last one is its own. There are none where
    the work asks a breaker itself. A try in half-open
    state finds out first whether the stores answer: the work may find nothing to do. `tells` says that the work notes
    itself how it fared.
    """

    abstract = True
    max_retries = 8
    breakers: tuple[str, ...] = ()
    tells = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if stopping.asked():
            raise Reject("this process ends", requeue=True)
        with last_batch():
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        outcome = "failed"
        failure: Exception | None = None
        traceparent = self._header("traceparent")
        attributes = messaging("celery", "process", "process", self.request.delivery_info["routing_key"]) | {
            "messaging.message.id": self.request.id or "",
            "celery.retries": self.request.retries or 0,
            **self._waited(),
        }
        with span(f"process {self.name}", SpanKind.CONSUMER, attributes, context_of(traceparent)):
            try:
                state = resources().breakers.let_through(self.breakers)
                if state is BreakerState.OPEN:
                    outcome = "held_back"
                    self._withdraw_hint()
                    return None
                if state is BreakerState.HALF_OPEN:
                    self._try_stores()
                result = super().__call__(*args, **kwargs)
                outcome = "succeeded"
                if state is BreakerState.HALF_OPEN:
                    resources().breakers.note(self.breakers[-1], good=0 if self.tells else 1)
                return result
            except TRANSIENT as error:
                failure = error
                again = self._again(error)
                outcome = "retried"
                raise again from error
            except Exception as error:
                failure = error
                if self.breakers:
                    self._note(self.breakers[-1], error)
                raise
            finally:
                seconds = time.perf_counter() - started
                metrics.task_duration.labels(self.name, outcome).observe(seconds)
                resources().count_connections()
                self._log(outcome, seconds, failure)

    def _log(self, outcome: str, seconds: float, failure: Exception | None) -> None:
        """The one line of this run."""
        said: dict[str, Any] = {"task": self.name, "outcome": outcome, "ms": round(seconds * 1000, 3)}
        if failure is None:
            _logger.info("task", **said)
        elif outcome == "retried":
            _logger.warning("task", **said, error=str(failure))
        else:
            _logger.error("task", **said, exc_info=failure)

    def _withdraw_hint(self) -> None:
        """A listener gives a new one, each second, so that the work is tried as soon as it may be."""
        scope = self._header(HINTED_SCOPE)
        if scope is not None:
            resources().locks.withdraw_hint(scope)

    def _try_stores(self) -> None:
        resources().verify()
        for name in self.breakers[:-1]:
            resources().breakers.note(name, good=1)

    def _again(self, error: Exception) -> Exception:
        """What to raise so that Celery repeats the task later. After `max_retries` times raises the error itself."""
        if isinstance(error, Unavailable) and error.upstream in self.breakers:
            self._note(error.upstream, error)
        retries = self.request.retries or 0
        asked_s = getattr(error, "retry_after_s", 0)
        jitter_s = random.uniform(0, min(FIRST_WAIT_S * 2**retries, LONGEST_WAIT_S))  # noqa: S311 - spreads load only
        again: Exception = self.retry(exc=error, countdown=asked_s + jitter_s, throw=False)
        metrics.task_retries.labels(self.name, _reason(error)).inc()
        return again

    def _header(self, name: str) -> str | None:
        value: str | None = (self.request.headers or {}).get(name) or self.request.get(name)
        return value

    def _waited(self) -> Attributes:
        """How long this task was in the queue, counted; of a repeat, most would be the wait that we asked for."""
        sent_at = self._header(SENT_AT)
        if sent_at is None or self.request.retries:
            return {}
        waited_s = max(0.0, time.time() - float(sent_at))
        metrics.task_wait.labels(self.name).observe(waited_s)
        return {"pricing.queue_wait_ms": round(waited_s * 1000)}

    def _note(self, breaker: str, error: Exception) -> None:
        with suppress(Unavailable):
            state = resources().breakers.note(breaker, bad=1, reason=str(error))
            if state is BreakerState.OPEN:
                _logger.warning("breaker open", breaker=breaker, reason=str(error))


def _reason(error: Exception) -> str:
    """The kind of an error, for a label."""
    kinds: dict[type[Exception], str] = {
        LockLost: "lock_lost",
        Conflict: "conflict",
        Overloaded: "overloaded",
        Unavailable: "unavailable",
        TimeoutError: "timeout",
        ConnectionError: "connection",
    }
    return next(kind for base, kind in kinds.items() if isinstance(error, base))
