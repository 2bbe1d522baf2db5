"""Forgetting what is no longer needed, in small transactions that nobody has to wait for."""

from app.services.ports import Store

BATCH = 1_000
MOST_BATCHES = 50


def forget_old(store: Store, days: float) -> int:
    """Delete ids of events that were processed, and tasks that ended, longer ago than that; how many, at most
    `BATCH` × `MOST_BATCHES` of each. A repeat of an event is known as one only while its id is kept. Raises
    `Unavailable`."""
    older_than_s = days * 86_400
    forgotten = 0
    for _ in range(MOST_BATCHES):
        with store.transaction() as tx:
            events = tx.events.forget(older_than_s, BATCH)
            tasks = tx.tasks.forget(older_than_s, BATCH)
        forgotten += events + tasks
        if max(events, tasks) < BATCH:
            break
    return forgotten
