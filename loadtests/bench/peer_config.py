"""How gunicorn serves whatever the service is compared with: exactly as the service, but with nothing around it."""

import os

from gunicorn_config import (
    PricingWorker,
    control_socket_disable,
    graceful_timeout,
    keepalive,
    pre_fork,
    set_apart,
    timeout,
    worker_tmp_dir,
)

__all__ = [
    "PlainWorker",
    "control_socket_disable",
    "graceful_timeout",
    "keepalive",
    "pre_fork",
    "timeout",
    "worker_tmp_dir",
]


post_fork = set_apart


class PlainWorker(PricingWorker):
    """Without the service's own protocol: applications know nothing but ASGI."""

    CONFIG_KWARGS = PricingWorker.CONFIG_KWARGS | {"http": "httptools"}


worker_class = os.environ.get("BENCH_WORKER_CLASS", "loadtests.bench.peer_config.PlainWorker")
workers = int(os.environ["PRICING_WORKERS"])
bind = f"127.0.0.1:{os.environ['PRICING_PORT']}"
