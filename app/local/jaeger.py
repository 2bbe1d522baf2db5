"""A Jaeger on this machine, such as `make jaeger` starts: found by its ports, which are everybody's default."""

import http.client
import json
import os
import socket

PAGE_PORT = int(os.environ.get("JAEGER_HTTP_PORT", "16686"))
OTLP_PORT = int(os.environ.get("JAEGER_OTLP_PORT", "4318"))
PAGE = f"http://127.0.0.1:{PAGE_PORT}"
OTLP = f"http://127.0.0.1:{OTLP_PORT}"

_TIMEOUT_S = 0.5


def is_there() -> bool:
    """Whether its API answers, and something takes traces."""
    connection = http.client.HTTPConnection("127.0.0.1", PAGE_PORT, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/api/v3/services")
        response = connection.getresponse()
        json.loads(response.read())
        socket.create_connection(("127.0.0.1", OTLP_PORT), _TIMEOUT_S).close()
        return response.status == 200
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
