"""`python -m listener`: runs until SIGTERM or SIGINT, then leaves what it had not dispatched to others."""

import os
import signal
import socket
import threading

import structlog

from app.bootstrap import open_resources
from app.observability import metrics
from app.observability.logging import configure_logging, log_settings
from app.observability.tracing import configure_tracing
from app.settings import Settings
from listener.doorbell import Doorbell
from listener.loop import Loop


def main() -> None:
    settings = Settings()
    configure_logging(settings, "listener")
    tracer_provider = configure_tracing(settings, "pricing-listener")
    log_settings(settings, structlog.get_logger(__name__))
    resources = open_resources(settings)
    resources.verify()
    metrics.present("listener", revision=settings.revision)
    stopping, ring = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        ring.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    doorbell = Doorbell(resources.channel, resources.publisher, ring, stopping)
    doorbell.start()
    Loop(resources, f"{socket.gethostname()}:{os.getpid()}", ring, stopping).run()
    doorbell.join(timeout=5)
    tracer_provider.shutdown()


if __name__ == "__main__":
    main()
