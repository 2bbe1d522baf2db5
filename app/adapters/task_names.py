"""What Celery's tasks and queues are called."""

APPLY_EVENTS = "pricing.apply_events"
RECALCULATE = "pricing.recalculate"
REPRICE_DUE = "pricing.reprice_due"
WRITE_TELEMETRY = "pricing.write_telemetry"

EVENTS_QUEUE, JOBS_QUEUE = "pricing", "pricing.jobs"
"""Recalculations have a queue, and workers, of their own: events do not wait for them."""

TELEMETRY_QUEUE = "pricing.telemetry"
"""The workers of recalculations take from it in turn with their own queue, so neither waits for all of the other."""

BOUNDARY_SCOPE = "boundaries"
"""The lock under which boundaries are worked off."""


def telemetry_scope(sink: str) -> str:
    """The lock under which records of requests are written to a sink."""
    return f"telemetry:{sink}"
