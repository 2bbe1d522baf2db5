"""Where the API on this machine is reached, and whether it is ready."""

import http.client
from urllib.parse import urlsplit

from app.settings import Settings


def api_url(settings: Settings) -> str:
    """As http://host:port, for a client on this machine, also where the API listens on every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def is_ready(url: str, timeout_s: float = 5.0) -> bool:
    """Whether the API there says that its stores answer."""
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or url, parts.port, timeout=timeout_s)
    except ValueError:  # that is no URL
        return False
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
