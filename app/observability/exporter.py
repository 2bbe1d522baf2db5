"""`python -m app.observability.exporter`: adds up what the processes of this machine count, for whoever asks.

Prometheus asks over HTTP, where PRICING_METRICS_PORT is set; the API's /metrics asks over a socket in the folder.
"""

import signal
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingMixIn, UnixStreamServer

import structlog

from app.adapters.log_level import follow
from app.errors import InvalidInput
from app.observability.catalogue import FOLDER, SEATS
from app.observability.exposition import CONTENT_TYPE, SOCKET, exposition
from app.observability.logging import configure_logging, log_settings
from app.settings import Settings

_logger = structlog.get_logger(__name__)


class _Told(StreamRequestHandler):
    """Tells all and hangs up."""

    def handle(self) -> None:
        with suppress(OSError):  # whoever asked is gone
            self.wfile.write(exposition())


class _Page(BaseHTTPRequestHandler):
    """GET /metrics."""

    timeout = 10

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        content = exposition()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is nothing to write down."""


class _SocketServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


def main() -> None:
    settings = Settings()
    configure_logging(settings, "metrics")
    log_settings(settings, _logger)
    follow(settings)
    if SEATS is None:
        raise InvalidInput(f"set {FOLDER} to the folder that the other processes have")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    path = SEATS.folder / SOCKET
    path.unlink(missing_ok=True)  # of an exporter before
    servers: list[_SocketServer | ThreadingHTTPServer] = [_SocketServer(str(path), _Told)]
    if settings.metrics_port is not None:
        servers.append(ThreadingHTTPServer((settings.host, settings.metrics_port), _Page))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stopping.wait()


if __name__ == "__main__":
    main()
