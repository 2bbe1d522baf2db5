"""What Celery's tasks and queues are called."""

APPLY_EVENTS = "pricing.apply_events"
RECALCULATE = "pricing.recalculate"
REPRICE_DUE = "pricing.reprice_due"

EVENTS_QUEUE, JOBS_QUEUE = "pricing", "pricing.jobs"
"""Recalculations have a queue, and workers, of their own: events do not wait for them."""

BOUNDARY_SCOPE = "boundaries"
"""The lock under which boundaries are worked off."""
