"""Structured logs: one JSON object a line, with the trace and span that were current."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from pydantic import SecretStr

from app.domain.api_key import redacted
from app.settings import Settings

_REPEATING = ("celery.worker.strategy", "celery.app.trace")
"""They say of every task again what its own line says."""


def configure_logging(settings: Settings, process: str) -> None:
    """Log as JSON to standard error, everybody's records alike, with the name of the process."""

    def add_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"process": process, **event}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        add_process,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
                lambda _, __, line: redacted(str(line)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(settings.log_level)


def set_level(level: str) -> None:
    """The least severe level that is written from now on. One line per request or task, unless it is debug."""
    logging.getLogger().setLevel(level.upper())
    for name in _REPEATING:
        logging.getLogger(name).setLevel("NOTSET" if level == "debug" else "CRITICAL")


def log_settings(settings: Settings, logger: Any) -> None:
    """What this process runs with. Secrets show as stars, and an unset one as None."""
    shown = {name: str(value) if isinstance(value, SecretStr) else value for name, value in settings}
    logger.info("settings", **{name: value if value is None else str(value) for name, value in shown.items()})


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event
