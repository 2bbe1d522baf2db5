"""DATA/run.json: what a running `pricing up` is made of, so that other commands find it.

It holds the stores' URLs and, for each process, its id and the moment it was created:
the pair is what proves, after a crash, that a process is one of ours.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from pydantic import SecretStr

from app.domain.api_key import HEADER
from app.local.addresses import api_url
from app.local.keys import ADMIN_KEY, SECRET
from app.settings import Settings

STORES = ("database_url", "cache_url", "broker_url", "victoriametrics_url")


def record(data: Path, settings: Settings, processes: Iterable[tuple[str, int, int]]) -> None:
    """Write the file, readable by its owner alone.

    `processes` are (name, process id, signal that stops it), in the order of their start.
    """
    urls = {name: url.get_secret_value() for name in STORES if (url := getattr(settings, name))}
    content = {
        "supervisor": identity(os.getpid()),
        "host": settings.host,
        "port": settings.port,
        "stores": urls,
        "processes": [
            {"name": name, "stop_signal": stop_signal, **identity(pid)} for name, pid, stop_signal in processes
        ],
    }
    temporary = data / "run.json.new"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(data / "run.json")


def forget(data: Path) -> None:
    """Nothing runs any more."""
    (data / "run.json").unlink(missing_ok=True)


def identity(pid: int) -> dict[str, Any]:
    """A process id and when that process was created, in seconds since 1970."""
    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "created": 0.0}


def same_process(recorded: dict[str, Any]) -> psutil.Process | None:
    """The recorded process, if it still runs; None if it ended, whoever has its id now."""
    try:
        process = psutil.Process(recorded["pid"])
        ours = abs(process.create_time() - recorded["created"]) < 1.0  # a stepped clock shifts it a little
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def read(data: Path) -> dict[str, Any] | None:
    """What the file says, or None where there is none that we can read."""
    try:
        content: dict[str, Any] = json.loads((data / "run.json").read_text())
        return content
    except (OSError, ValueError):
        return None


def settings_of_running(settings: Settings) -> Settings:
    """`settings` with the address, the stores and the keys of the `pricing up` that runs on its data folder.

    What is set already stays as it is; so does everything where none runs.
    """
    running = read(settings.data)
    if running is None or same_process(running["supervisor"]) is None:
        return settings
    found: dict[str, Any] = {
        name: SecretStr(url) for name, url in running["stores"].items() if getattr(settings, name) is None
    }
    secret = settings.data / SECRET
    if settings.key_secret is None and settings.key_secret_file is None and secret.exists():
        found["key_secret_file"] = secret
    return settings.model_copy(update={"host": running["host"], "port": running["port"], **found})


def key_headers(settings: Settings, url: str) -> dict[str, str]:
    """What shows our API key to the API at this address: the one that is set, or that of the first start of the
    `pricing up` that runs on our data folder, which no other address gets to see."""
    if settings.api_key is not None:
        return {HEADER: settings.api_key.get_secret_value()}
    with contextlib.suppress(OSError, ValueError):  # there is none, it is somebody else's, or that is no URL
        if _place(url) == _place(api_url(settings_of_running(settings))):
            return {HEADER: (settings.data / ADMIN_KEY).read_text().strip()}
    return {}


def _place(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    return "127.0.0.1" if parts.hostname in ("localhost", "::1", None) else parts.hostname, parts.port


def stop_leftovers(data: Path, say: Callable[[str], None]) -> None:
    """End what a killed `pricing up` left behind; wait for it, at most 10 seconds, then kill it."""
    left = [(p, process) for p in (read(data) or {}).get("processes", []) if (process := same_process(p))]
    for recorded, process in reversed(left):
        say(f"Stopping {recorded['name']} (process {process.pid}), left by an earlier `pricing up`")
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends meanwhile
            tree = [process, *process.children(recursive=True)]
            process.send_signal(recorded["stop_signal"])
            for late in psutil.wait_procs(tree, timeout=10)[1]:
                late.kill()
    forget(data)
