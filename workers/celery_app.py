"""What `celery -A workers.celery_app worker` runs."""

from typing import Any

import structlog
from celery import signals

from app import niceness
from app.adapters.task_names import EVENTS_QUEUE, JOBS_QUEUE
from app.adapters.task_queue import make_celery
from app.bootstrap import open_resources
from app.errors import InvalidInput
from app.observability import metrics
from app.observability.logging import configure_logging, log_settings
from app.settings import Settings
from workers import context, leaving, tasks

settings = Settings()
if settings.events_url is None:
    raise InvalidInput("set PRICING_BROKER_URL or PRICING_CACHE_URL, or start everything with `pricing up`")

app = make_celery(settings.events_url.get_secret_value())
tasks.register(app)


@signals.setup_logging.connect
def _logging(**_: Any) -> None:
    configure_logging(settings, "worker")


@signals.worker_init.connect
def _verify(**_: Any) -> None:
    """In the parent, before it serves: the settings in the log, and every store answers."""
    niceness.extend_to_session()
    configure_logging(settings, "worker")  # Celery asks for it later than this
    log_settings(settings, structlog.get_logger(__name__))
    resources = open_resources(settings)
    resources.verify()
    resources.store.close()


@signals.worker_ready.connect
def _watch_signals(**_: Any) -> None:
    leaving.watch_signals()


@signals.worker_process_init.connect
def _start(**_: Any) -> None:
    """In each child, after the fork: connections and exporters do not survive one."""
    context.start(settings)
    kinds = {EVENTS_QUEUE: "worker", JOBS_QUEUE: "jobs"}
    taken = app.amqp.queues.consume_from
    metrics.present(*(kind for queue, kind in kinds.items() if queue in taken), revision=settings.revision)


@signals.worker_process_shutdown.connect
def _stop(**_: Any) -> None:
    context.stop()
