"""An application that exposes metrics, in a thread."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Exporter(ThreadingHTTPServer):
    """An application with metrics; ``seen`` holds the address and headers of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exporter)
        self.port = int(self.server_address[1])
        self.seen: list[tuple[str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Exporter(BaseHTTPRequestHandler):
    server: Exporter

    def do_GET(self) -> None:
        self.server.seen.append((self.client_address[0], dict(self.headers)))
        body = f'# TYPE app_requests_total counter\napp_requests_total{{path="{self.path}"}} 1\n'.encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass
