"""`python -m listener`: runs until SIGTERM or SIGINT, then puts what it has read into the inboxes and leaves. What it
could not put there in `LEAVE_S`, or before a second signal, stays pending in the stream, where others find it."""

import os
import signal
import socket
import threading

import structlog

from app.adapters.log_level import follow
from app.bootstrap import open_resources
from app.observability import metrics
from app.observability.logging import configure_logging, log_settings
from app.observability.tracing import configure_tracing, stop_tracing
from app.settings import Settings
from listener.doorbell import Doorbell
from listener.loop import Loop

LEAVE_S = 15


def main() -> None:
    settings = Settings()
    configure_logging(settings, "listener")
    tracer_provider = configure_tracing(settings, "pricing-listener")
    log_settings(settings, structlog.get_logger(__name__))
    resources = open_resources(settings)
    resources.verify()
    follow(settings)
    metrics.present("listener", revision=settings.revision)
    stopping, ring = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(LEAVE_S)
        stopping.set()
        ring.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    doorbell = Doorbell(resources.channel, resources.publisher, ring, stopping)
    doorbell.start()
    Loop(resources, f"{socket.gethostname()}:{os.getpid()}", ring, stopping).run()
    doorbell.join(timeout=5)
    stop_tracing(tracer_provider)


if __name__ == "__main__":
    main()
