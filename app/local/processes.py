"""The service's own processes, as children that are configured by nothing but their environment."""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.adapters.task_names import EVENTS_QUEUE, JOBS_QUEUE
from app.local.supervisor import Child
from app.settings import Settings

GUNICORN_CONFIG = Path(__file__).parents[2] / "gunicorn_config.py"


def environment(settings: Settings, metrics: Path) -> dict[str, str]:
    """Our environment, with every setting that has a value, wherever it came from."""
    prefix = settings.model_config["env_prefix"]
    ours = {f"{prefix}{name.upper()}": plain(value) for name, value in settings if value is not None}
    shared = {f"{prefix}METRICS_DIR": str(metrics), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    return {**os.environ, **ours, **shared, "PYTHONUNBUFFERED": "1"}


def plain(value: Any) -> str:
    """A setting as its environment variable spells it."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def service(settings: Settings, metrics: Path, logs: Path) -> list[Child]:
    """Exporter of metrics, workers, listener and API, in the order of their start."""
    env = environment(settings, metrics)
    python = [sys.executable, "-m"]
    celery = [*python, "celery", "-A", "workers.celery_app", "worker", "--without-gossip", "--without-mingle"]
    celery.append(f"--concurrency={settings.worker_concurrency}")
    return [
        Child("metrics", [*python, "app.observability.exporter"], logs / "metrics.log", env, grace_s=2),
        Child("worker", [*celery, "-Q", EVENTS_QUEUE, "-n", "events@%h"], logs / "worker.log", env, grace_s=30),
        # Recalculations wait for no one and nobody waits for them: they take what processor time the others leave.
        Child("jobs", ["nice", *celery, "-Q", JOBS_QUEUE, "-n", "jobs@%h"], logs / "jobs.log", env, grace_s=30),
        Child("listener", [*python, "listener"], logs / "listener.log", env, grace_s=15),
        Child(
            "api",
            [*python, "gunicorn", "-c", str(GUNICORN_CONFIG), "app.main:create_app()"],
            logs / "api.log",
            env,
            grace_s=35,  # gunicorn gives its workers 30 s to finish their requests
        ),
    ]
