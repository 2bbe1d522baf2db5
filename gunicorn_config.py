"""How gunicorn serves the API: from the settings of `app.settings`, tracing and metrics per worker."""

import gc
import logging
import math
import os
import pathlib
import signal
import sys

# Loaded by structlog, FastAPI and OpenTelemetry wherever they are installed: 6 MB that nothing here needs. (What starts
# processes needs psutil, in `app/local`, and is none of the API's.)
for optional in ("rich", "pydantic.v1", "psutil"):
    sys.modules[optional] = None

from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from uvicorn_worker import UvicornWorker

# Here, so that workers share the memory of what they all import.
import app.adapters.redis_clients
import app.adapters.store
import app.api.schemas
import app.services.quoting  # noqa: F401
from app import processors, stopping
from app.api import leaving
from app.api.protocol import QuickProtocol
from app.bootstrap import tell_end
from app.local.leash import die_with
from app.observability import sources
from app.observability.logging import configure_logging
from app.observability.tracing import configure_tracing, stop_tracing
from app.settings import Settings

settings = Settings()


class PricingWorker(UvicornWorker):
    """The stock worker cuts connections when it leaves, and waits for requests without a limit (uvicorn-worker 0.4)."""

    CONFIG_KWARGS = {  # noqa: RUF012 - the name and form are the base class's
        "loop": "uvloop",
        "http": QuickProtocol,
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,  # nothing asks who the client is
        "server_header": False,
        "timeout_graceful_shutdown": leaving.IN_HAND_S,
        # uvicorn goes by the time of day: after the clock is set back it would not say that it lives until the time
        # comes again, and gunicorn would end every worker meanwhile. So it says so each second.
        "timeout_notify": -math.inf,
    }

    async def _serve(self):
        self.config.app = self.wsgi
        server = leaving.LeavingServer(self.config, self.age)
        await server.serve(sockets=[listening.sock for listening in self.sockets])
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


class JsonLogger(Logger):
    """Gunicorn's own lines, and uvicorn's, which takes over these handlers, look like everybody else's."""

    def setup(self, cfg):
        super().setup(cfg)
        configure_logging(settings, "api")
        self.error_log.handlers[:] = logging.getLogger().handlers


bind = f"{settings.host}:{settings.port}"
reuse_port = True
workers = settings.workers
worker_class = "gunicorn_config.PricingWorker"
logger_class = JsonLogger
worker_tmp_dir = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None  # noqa: S108 - memory, for heartbeats
control_socket_disable = True
graceful_timeout = 20
keepalive = 65
timeout = 30
proc_name = "pricing-api"


def when_ready(server):
    # What was imported stays: a collection in a worker shall neither look through it nor make a copy of its pages.
    gc.collect()
    gc.freeze()

    def stop(number, frame):
        """The workers see that all of them leave. The second time gunicorn does not wait for them."""
        server.signal(signal.SIGQUIT if stopping.asked() else number, frame)
        stopping.ask()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def pre_fork(server, worker):
    others = {other.age: getattr(other, "part", None) for other in server.WORKERS.values()}
    worker.part = processors.free_part(server.num_workers, others)


def set_apart(server, worker):
    """A worker has a place, processors, and a session of its own.

    Each session has its share of the processors' time (see app/niceness.py): together the workers would have one, as
    much as a single process of PostgreSQL. Who ends the master's group does not reach them any more: they end with it.
    """
    sources.take_place(worker.age)
    processors.keep_to(worker.part, server.num_workers)
    os.setsid()
    die_with(server.pid, signal.SIGKILL)


def post_fork(server, worker):
    set_apart(server, worker)
    # The thread that writes access records gives way to requests ten times sooner than by default.
    sys.setswitchinterval(0.0005)
    # The master's handlers, which a fork inherits, would only note these and do nothing.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    # After the fork: an exporter's thread does not survive one.
    worker.tracer_provider = configure_tracing(settings, "pricing-api", sampled_by_caller=True)


def worker_exit(server, worker):
    if hasattr(worker, "tracer_provider"):
        stop_tracing(worker.tracer_provider)


def child_exit(server, worker):
    leaving.gone(worker.age)
    ended = sources.left_by(worker.age)
    if ended is not None:
        tell_end(settings, ended)
