"""How a worker leaves.

Told to stop (SIGTERM, SIGINT), the parent takes no more tasks, and its children see that everything stops: each ends
its turn with the batch in hand, frees its lock and queues a hint, so that others go on at once. What has not ended
after `DRAIN_S`, or at a second signal, or at SIGQUIT, is broken off: its transaction is rolled back and its lock freed.
A child that is told alone does the same for itself, and its parent starts another.

Celery's own soft shutdown would wait its whole time out whenever there is a task, and tell no child.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from billiard import active_children
from celery.worker import state

from app import stopping

DRAIN_S = 15
UNWIND_S = 1.0


def watch_signals() -> None:
    """In the parent, once it serves: until then Celery's own handlers are right."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGQUIT, _leave_at_once)
    signal.signal(signal.SIGALRM, _leave_at_once)


def _leave(*_: Any) -> None:
    if stopping.everything_stops():
        _leave_at_once()
    stopping.ask()
    state.should_stop = os.EX_OK
    signal.alarm(DRAIN_S)


def _leave_at_once(*_: Any) -> None:
    """Without the messages in hand, which are hints. A child that does not end is killed with its parent."""
    children = active_children()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGQUIT)  # which billiard turns into a SystemExit
    until = time.monotonic() + UNWIND_S
    while time.monotonic() < until and any(child.is_alive() for child in children):
        time.sleep(0.02)
    os._exit(os.EX_TEMPFAIL)


@contextmanager
def last_batch() -> Iterator[None]:
    """In a child, around a task: SIGTERM does not break the batch in hand off, but ends the process after it. A pool of
    threads has no such children."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def leave(*_: Any) -> None:
        nonlocal told
        told = True
        stopping.ask_this_process()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
