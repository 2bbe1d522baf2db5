"""The service's own processes, as children that are configured by nothing but their environment."""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.adapters.task_names import EVENTS_QUEUE, JOBS_QUEUE, TELEMETRY_QUEUE
from app.local.supervisor import Child
from app.settings import Settings

GRACE_S = 22.0
"""Each ends by itself within 20 s, whatever it waits for."""

GUNICORN_CONFIG = Path(__file__).parents[2] / "gunicorn_config.py"


def environment(settings: Settings, metrics: Path) -> dict[str, str]:
    """Our environment, with every setting that has a value, wherever it came from, but for the key of commands."""
    prefix = settings.model_config["env_prefix"]
    ours = {f"{prefix}{name.upper()}": plain(value) for name, value in settings if value is not None}
    shared = {f"{prefix}METRICS_DIR": str(metrics), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    # Python lets one thread work at a time: an arena of memory for each would only leave more gaps.
    all_of_it = {"MALLOC_ARENA_MAX": "1", **os.environ, **ours, **shared, "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in all_of_it.items() if name != f"{prefix}API_KEY"}


def plain(value: Any) -> str:
    """A setting as its environment variable spells it."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def service(settings: Settings, metrics: Path, logs: Path) -> list[Child]:
    """Exporter of metrics, workers, listener and API, in the order of their start. They are stopped by stage: the API,
    then those behind it, and the exporter with the stores."""
    env = environment(settings, metrics)
    python = [sys.executable, "-m"]
    celery = [*python, "celery", "-A", "workers.celery_app", "worker", "--without-gossip", "--without-mingle"]
    celery.append(f"--concurrency={settings.worker_concurrency}")
    gunicorn = [*python, "gunicorn", "-c", str(GUNICORN_CONFIG), "app.main:create_app()"]

    def child(name: str, argv: list[str], stage: int) -> Child:
        return Child(name, argv, logs / f"{name}.log", env, grace_s=GRACE_S, stage=stage)

    return [
        child("metrics", [*python, "app.observability.exporter"], stage=0),
        child("worker", [*celery, "-Q", EVENTS_QUEUE, "-n", "events@%h"], stage=1),
        # Recalculations wait for no one and nobody waits for them: they take what processor time the others leave.
        # So do records of requests.
        child("jobs", ["nice", "-n19", *celery, "-Q", f"{JOBS_QUEUE},{TELEMETRY_QUEUE}", "-n", "jobs@%h"], stage=1),
        child("listener", [*python, "listener"], stage=1),
        child("api", gunicorn, stage=2),
    ]
