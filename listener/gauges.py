"""What a listener sees of the stores, for the metrics."""

import time

from app.bootstrap import Resources
from app.observability import metrics


def measure(resources: Resources) -> None:
    """Look once, and note what is seen. Raises `Unavailable`."""
    accounts = resources.accounts.read()
    metrics.stream_length.set(accounts.length)
    for name, group in accounts.groups.items():
        metrics.stream_lag.labels(name).set(group.unread)
        metrics.stream_pending.labels(name).set(group.pending)
    for name, count in accounts.events.items():
        metrics.event_ledger.labels(name).set(count)
    metrics.backlog_limit.set(resources.settings.max_backlog_events)
    metrics.oldest_event_age.set(resources.log.backlog().oldest_s)
    metrics.dead_letters.set(resources.log.dead_letters())
    for queue, length in resources.queue.lengths().items():
        metrics.task_queue_length.labels(queue).set(length)
    resources.count_connections()
    metrics.looked.set(time.time())
