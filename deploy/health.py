"""Does this container do its job? `python deploy/health.py api|worker|listener|metrics` exits 0 if so.

For an orchestrator's health checks: each asks only about the process beside it, and its way to the stores.
"""

import socket
import sys
import urllib.request

from app.settings import Settings

TIMEOUT_S = 4.0


def api(settings: Settings) -> bool:
    """Its stores answer; any other status than 2xx raises."""
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/readyz", timeout=TIMEOUT_S):
        return True


def worker(settings: Settings) -> bool:
    """It answers over the broker."""
    from app.adapters.task_queue import make_celery

    assert settings.events_url is not None
    with make_celery(settings.events_url.get_secret_value()) as application:
        names = [f"{name}@{socket.gethostname()}" for name in ("celery", "events", "jobs")]
        replies = application.control.broadcast("ping", destination=names, reply=True, limit=1, timeout=TIMEOUT_S)
        return bool(replies)


def listener(settings: Settings) -> bool:
    """It has said so, in its own name, a moment ago."""
    import redis

    from app.adapters.event_log import LISTENER_KEYS

    assert settings.events_url is not None
    with redis.Redis.from_url(settings.events_url.get_secret_value(), socket_timeout=TIMEOUT_S) as client:
        return any(True for _ in client.scan_iter(f"{LISTENER_KEYS}{socket.gethostname()}:*"))


def metrics(settings: Settings) -> bool:
    """It can be scraped; any other status than 2xx raises."""
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.metrics_port}/metrics", timeout=TIMEOUT_S):
        return True


if __name__ == "__main__":
    role = sys.argv[1]
    if not {"api": api, "worker": worker, "listener": listener, "metrics": metrics}[role](Settings()):
        sys.exit(f"the {role} does not answer")
