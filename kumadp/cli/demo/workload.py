"""The demo's applications: ``python -m kumadp.cli.demo.workload NAME=PORT ...``.

One process with one small HTTP server for each name, on loopback. ``/`` returns the name, ``/healthz`` returns ok,
``/slow`` takes three seconds. Prints one line once all accept connections; exits when standard input is closed, and so
also when the demo dies.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "127.0.0.1"
SLOW_SECONDS = 3.0
UP_LINE = "up"


class WorkloadServer(ThreadingHTTPServer):
    """One application on ``HOST:port``; raises OSError if the port is taken."""

    daemon_threads = True

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        super().__init__((HOST, port), WorkloadHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client that closes its connection is not worth a traceback."""


class WorkloadHandler(BaseHTTPRequestHandler):
    """Handler of the three paths."""

    server: WorkloadServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a GET."""
        path = self.path.partition("?")[0]
        if path == "/slow":
            time.sleep(SLOW_SECONDS)
        if path == "/":
            self._answer(200, f"hello from {self.server.name} (pid {os.getpid()})\n")
        elif path == "/slow":
            self._answer(200, f"{self.server.name} took {SLOW_SECONDS:.0f} s\n")
        elif path == "/healthz":
            self._answer(200, "ok\n")
        else:
            self._answer(404, f"{self.server.name} has only /, /healthz and /slow\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write no access log."""

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(specifications: Sequence[str]) -> int:
    """Serve until standard input is closed; if a port cannot be bound, print that on stderr and return 1."""
    for specification in specifications:
        name, _, port = specification.partition("=")
        try:
            server = WorkloadServer(name, int(port))
        except OSError as error:
            print(f"workload {name} cannot listen on {HOST}:{port}: {error.strerror}", file=sys.stderr)
            return 1
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()
    print(UP_LINE, flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
