"""What one worker process holds: its resources and its tracer."""

from dataclasses import dataclass

from opentelemetry.sdk.trace import TracerProvider

from app.adapters.log_level import follow
from app.bootstrap import Resources, open_resources
from app.observability.logging import configure_logging
from app.observability.tracing import configure_tracing, stop_tracing
from app.settings import Settings


@dataclass
class _Process:
    resources: Resources
    tracer_provider: TracerProvider


_process: _Process | None = None


def start(settings: Settings) -> None:
    global _process
    configure_logging(settings, "worker")
    follow(settings)
    _process = _Process(open_resources(settings), configure_tracing(settings, "pricing-worker"))


def stop() -> None:
    if _process is not None:
        stop_tracing(_process.tracer_provider)
        _process.resources.record_sinks.close()
        _process.resources.store.close()


def resources() -> Resources:
    assert _process is not None, "tasks run in worker processes, which Celery starts"
    return _process.resources
