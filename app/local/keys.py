"""What `pricing up` keeps of API keys in its data folder, for its owner alone: the secret that keys are hashed with,
and the admin key of the first start, which commands on this machine show to the API."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

SECRET, ADMIN_KEY = "key-secret", "admin-key"  # names of files


def make_secret(file: Path) -> None:
    """Make the file of the secret, unless it is there."""
    if not file.exists():
        written = _written(file, secrets.token_urlsafe(48))
        with suppress(FileExistsError):  # somebody else was first
            os.link(written, file)
        written.unlink()


def keep_admin_key(data: Path, key: str) -> None:
    """In place of any other."""
    _written(data / ADMIN_KEY, key).replace(data / ADMIN_KEY)


def _written(file: Path, content: str) -> Path:
    """A file beside it, of this content, which nobody else can read."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    with os.fdopen(descriptor, "w") as output:
        output.write(content + "\n")
    return Path(name)
