"""Applications as probes meet them: real servers for HTTP, HTTPS, gRPC and TCP, well and unwell."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import trustme

from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
# TEST-NET-3 (RFC 5737): nobody's.
ELSEWHERE = "http://203.0.113.1/"


class WebApplication(ThreadingHTTPServer):
    """Answers by path, see `_Handler.do_GET`; `seen` are the requests, `entered` is set when one hangs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", *, tls: bool = False, other: int = 0) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.port = int(self.server_address[1])
        self.other = other
        self.seen: list[dict[str, str]] = []
        self.release = threading.Event()
        self.slow = threading.Event()
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # For a name that no test uses, by an authority that no client trusts.
            trustme.CA().issue_cert("other.example").configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A probe that leaves is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: WebApplication
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = {"method": self.command, "path": path, "query": query, "from": self.client_address[0], **headers}
        self.server.seen.append(seen)
        name, _, argument = path.strip("/").partition("/")
        match name:
            case "code":
                self._answer(int(argument))
            case "to":
                self._answer(302, location={"other": ELSEWHERE, "forbidden": self._at(self.server.other)}[argument])
            case "loop":
                self._answer(302, location=f"/loop/{int(argument) - 1}" if argument != "0" else "/")
            case "absolute":
                self._answer(301, location=self._at(self.server.port) + argument)
            case "nowhere":
                self._answer(302)
            case "host":
                self._answer(200 if headers["host"] == "web.example" else 421)
            case "moved":
                self._answer(307, location="/host")
            case "hang":
                self.server.release.wait(30)
            case "slow":
                self.server.slow.wait(30)
                self._answer(200)
            case "half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                self.close_connection = True
            case "garbage":
                self.wfile.write(b"220 this is no HTTP\r\n")
                self.close_connection = True
            case "endless":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
                with contextlib.suppress(OSError):
                    while not self.server.release.is_set():
                        self.wfile.write(bytes(1 << 16))
                self.close_connection = True
            case "large":
                self._answer(200, **{"x-large": "a" * 60_000})
            case _:
                self._answer(200)

    def do_POST(self) -> None:
        self.do_GET()

    def _at(self, port: int) -> str:
        host = str(self.server.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        body = b"" if status == 204 else b"ok"
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


def _health(agents: list[str]) -> grpc.GenericRpcHandler:
    """``grpc.health.v1.Health/Check`` for a real gRPC server (grpcio): by service, raw messages."""

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        agents.extend(str(value) for name, value in context.invocation_metadata() if name == "user-agent")
        # Up to 127 bytes: one for the field, one for the length.
        service = request[2:].decode()
        if service == "hang":
            threading.Event().wait(3)
        if service == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return NOT_SERVING if service == "down" else SERVING

    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)


@dataclass
class Applications:
    """Ports of what runs; ``closed`` has nothing on it, ``silent`` accepts and never speaks."""

    web: WebApplication
    tls: WebApplication
    grpc: int
    bare_grpc: int
    silent: int
    full: int
    closed: int
    agents: list[str]

    def path(self, template: str) -> str:
        """The path with the ports in their places."""
        ports = {"web": self.web.port, "tls": self.tls.port, "grpc": self.grpc, "bare": self.bare_grpc}
        return template.format(**ports, silent=self.silent, full=self.full, closed=self.closed)


FORBIDDEN = 1
"""A port that may not be probed."""


@contextlib.contextmanager
def applications(host: str = "127.0.0.1", forbidden: int = 0) -> Iterator[Applications]:
    """All of them; a redirect of the web application leads to ``forbidden``."""
    with contextlib.ExitStack() as stack:
        web, tls = WebApplication(host, other=forbidden), WebApplication(host, tls=True)
        stack.callback(web.close)
        stack.callback(tls.close)
        agents: list[str] = []
        ports = []
        for handlers in ((_health(agents),), ()):
            server = grpc.server(ThreadPoolExecutor(4), handlers=handlers)
            ports.append(server.add_insecure_port(f"[{host}]:0" if ":" in host else f"{host}:0"))
            server.start()
            stack.callback(server.stop, None)
        family = web.address_family
        silent = stack.enter_context(socket.create_server((host, 0), family=family, backlog=128))
        full = stack.enter_context(socket.create_server((host, 0), family=family, backlog=0))
        for _ in range(4):
            # No more connections fit, so the kernel answers none.
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        numbers = (silent.getsockname()[1], full.getsockname()[1])
        yield Applications(web, tls, ports[0], ports[1], *numbers, free_port(), agents)
