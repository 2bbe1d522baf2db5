"""What `pricing up` needs of the machine: a data folder of its own, a free port, a folder for metrics."""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.local import SetUpError
from app.local.running import read

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  a tmpfs; the folder made in it is private


def prepare_data(folder: Path) -> Path:
    """The data folder, absolute, made if need be and seen to be writable."""
    data = folder.expanduser().resolve()
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True)
        probe = data / "logs" / ".writable"
        probe.touch()
        probe.unlink()
        (data / "lock").touch(mode=0o600)
        (data / "lock").open("r+").close()
    except OSError as error:
        raise SetUpError(
            f"The data folder {data} cannot be written ({error.strerror}): give it to your user, "
            "or choose another with --data or PRICING_DATA."
        ) from error
    return data


@contextmanager
def sole_user_of(data: Path) -> Iterator[None]:
    """Hold the data folder's lock, which the kernel takes back however we end."""
    with (data / "lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            running = read(data)
            who = f" (process {running['supervisor']['pid']})" if running else ""
            raise SetUpError(
                f"Another `pricing up`{who} is using {data}: stop that one, "
                "or choose another folder with --data or PRICING_DATA."
            ) from error
        yield


def check_port(host: str, port: int) -> None:
    """Nobody listens where the API will; raises SetUpError otherwise."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} is taken: stop what listens there"
        else:
            message = f"The API cannot listen on {host}:{port} ({error.strerror}): correct --host or PRICING_HOST"
        raise SetUpError(f"{message}, or choose another port with --port or PRICING_PORT.") from error


def metrics_folder(chosen: Path | None, data: Path) -> Path:
    """An empty folder, in memory if there is such a place, where the processes share metrics."""
    if chosen is not None:
        folder = chosen.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.db"):
            old.unlink()
        return folder
    if os.access(SHARED_MEMORY, os.W_OK):
        folder = SHARED_MEMORY / f"pricing-{os.geteuid()}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    else:
        folder = data / "metrics"
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)  # fails if somebody else made it first
    return folder
