"""How gunicorn serves whatever the service is compared with: exactly as the service, but with nothing around it."""

import os

from gunicorn_config import control_socket_disable, graceful_timeout, keepalive, timeout, worker_tmp_dir

__all__ = ["control_socket_disable", "graceful_timeout", "keepalive", "timeout", "worker_tmp_dir"]

worker_class = os.environ.get("BENCH_WORKER_CLASS", "gunicorn_config.PricingWorker")
workers = int(os.environ["PRICING_WORKERS"])
bind = f"127.0.0.1:{os.environ['PRICING_PORT']}"
