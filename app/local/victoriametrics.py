"""A VictoriaMetrics on this machine, such as `make victoriametrics` starts: found by its port, everybody's default."""

import http.client
import os

PORT = int(os.environ.get("VICTORIAMETRICS_HTTP_PORT", "8428"))
URL = f"http://127.0.0.1:{PORT}"
PAGE = f"{URL}/vmui"

_TIMEOUT_S = 0.5


def is_there() -> bool:
    """Whether it answers, as nothing else does that may have its port."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        return response.status == 200 and b"vm_app_version" in response.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
