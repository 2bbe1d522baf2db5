"""`pricing doctor`: what is well, what is wrong, and how to mend it."""

import importlib
import shutil
import sys
from collections.abc import Iterator

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from app.local import SetUpError
from app.local.addresses import api_url, is_ready
from app.local.checkups import Finding, api_keys, consumers, judged, postgres, redis_like, tracing
from app.local.configuration import variable
from app.local.machine import check_port, prepare_data
from app.local.running import settings_of_running
from app.settings import Settings

ROOM_BYTES = 1_000_000_000
MARKS = {True: ("✔", "green"), False: ("✘", "red"), None: ("–", "dim")}


def examine(console: Console) -> int:
    """Look at everything and print each finding at once; returns 1 if something is wrong, else 0."""
    wrong = 0
    for finding in findings():
        mark, style = MARKS[finding.well]
        line = Text(f"{mark} ", style).append(f"{finding.what}: ", "bold").append(finding.seen, "default")
        console.print(line, soft_wrap=True)
        if finding.mend:
            console.print(Text(f"    → {finding.mend}"), soft_wrap=True)
        wrong += finding.well is False
    console.print(f"\n{wrong} to mend" if wrong else "\nNothing to mend")
    return 1 if wrong else 0


def findings() -> Iterator[Finding]:
    """Every check, in the order in which a person would mend what it finds."""
    yield judged("Python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python ≥ 3.11")
    try:
        configured = Settings()
    except ValidationError as error:
        for wrong in error.errors(include_input=False, include_url=False):
            name = variable(str(wrong["loc"][0]))
            yield Finding("settings", False, f"{name}: {wrong['msg']}", f"correct {name}; see `pricing config`")
        return
    yield Finding("settings", True, "all valid")
    yield packages()
    yield data_folder(configured)
    settings = settings_of_running(configured)
    yield port(settings)
    yield from postgres(settings.database_url)
    yield api_keys(settings)
    yield from redis_like("cache", "cache_url", settings.cache_url, must_keep=False)
    yield from redis_like("broker", "broker_url", settings.events_url, must_keep=True)
    yield from consumers(settings)
    yield tracing(settings)


def packages() -> Finding:
    for name in ("gunicorn", "uvicorn", "celery", "psycopg", "redis"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return Finding("packages", False, str(error), "install again: `make clean run`")
    return Finding("packages", True, "gunicorn, uvicorn, celery, psycopg and redis are installed")


def data_folder(settings: Settings) -> Finding:
    try:
        data = prepare_data(settings.data)
    except SetUpError as error:
        return Finding("data folder", False, str(error))
    free = shutil.disk_usage(data).free
    if free < ROOM_BYTES:
        return Finding("data folder", False, f"{free / 1e6:.0f} MB free on the disk of {data}", "make room")
    return Finding("data folder", True, f"{data} is writable, {free / 1e9:.0f} GB free")


def port(settings: Settings) -> Finding:
    if is_ready(api_url(settings)):
        return Finding("API", True, f"ready on {settings.host}:{settings.port}")
    try:
        check_port(settings.host, settings.port)
    except SetUpError as error:
        return Finding("API", False, f"not ready on {settings.host}:{settings.port}. {error}")
    return Finding("API", None, f"not running; {settings.host}:{settings.port} is free", "`pricing up` starts it")
