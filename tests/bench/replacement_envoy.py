"""A replacement for Envoy beside a program that requests less than Envoy has.

Its admin serves one stored exposition on every path, and its dynamic configuration one body. Variables:
REPLACEMENT_PORT, REPLACEMENT_FILE, REPLACEMENT_SOCKET, REPLACEMENT_BODY.
"""

from __future__ import annotations

import hashlib
import os
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

if "--version" in sys.argv:
    print(f"envoy  version: {'0' * 40}/1.36.4/Clean/RELEASE/BoringSSL")  # noqa: T201
    sys.exit()

EXPOSITION = Path(os.environ["REPLACEMENT_FILE"]).read_bytes()
BODY = os.environ["REPLACEMENT_BODY"].encode()
ETAG = hashlib.sha256(BODY).hexdigest()


class Admin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = EXPOSITION if self.path.startswith("/stats") else b"LIVE\n"
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=UTF-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()


class Dynamic(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        unchanged = self.headers.get("If-None-Match") == ETAG
        there = self.path == "/meshmetric"
        self.send_response(304 if unchanged else 200 if there else 404)
        self.send_header("etag", ETAG)
        self.end_headers()
        if there and not unchanged:
            self.wfile.write(BODY)

    def address_string(self) -> str:
        return "unix"


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


threading.Thread(target=UnixServer(os.environ["REPLACEMENT_SOCKET"], Dynamic).serve_forever, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", int(os.environ["REPLACEMENT_PORT"])), Admin).serve_forever()
