"""What waits to be applied, and since when what was published is acknowledged."""

import threading
from typing import Any

import redis

from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Ledger, order

GROUP = "repricing"
MOST = 100_000


def group_of(fleet: Fleet) -> dict[str, Any]:
    (group,) = [group for group in fleet.broker.xinfo_groups("events") if group["name"] == GROUP]
    return dict(group)


def backlog(fleet: Fleet) -> dict[str, int]:
    """Entries that nobody has read, that nobody has acknowledged, and work on its way to a worker."""
    group = group_of(fleet)
    unread = group["lag"]
    if unread is None:
        unread = len(fleet.broker.xrange("events", f"({group['last-delivered-id']}", "+"))
    waiting = {"unread": unread, "pending": group["pending"]}
    for kind in ("inbox", "suspects"):
        waiting[kind] = sum(fleet.broker.zcard(key) for key in fleet.broker.scan_iter(f"{kind}:*"))
    return waiting


def unfinished(fleet: Fleet) -> dict[str, int]:
    """What else is still to be done."""
    query = """
        SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM tasks WHERE state IN ('queued', 'running')),
               (SELECT count(*) FROM price_sheets WHERE valid_until < now())
    """
    ((outbox, tasks, due),) = fleet.sql(query)
    return {"outbox": outbox, "tasks": tasks, "due boundaries": due}


class Backlog(threading.Thread):
    """Looks several times a second. `waiting` is what it saw last, `highest` the most."""

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self._fleet, self._ledger = fleet, ledger
        self.stopping = threading.Event()
        self.waiting = self.highest = 0

    def run(self) -> None:
        while not self.stopping.wait(0.1):
            try:
                self.look()
            except (redis.RedisError, ValueError):
                continue

    def look(self) -> None:
        group = group_of(self._fleet)
        pending = self._fleet.broker.xpending_range("events", GROUP, "-", "+", MOST)
        self._ledger.acknowledged(order(group["last-delivered-id"]), {entry["message_id"] for entry in pending})
        self.waiting = (group["lag"] or 0) + len(pending)
        self.highest = max(self.highest, self.waiting)
