"""A control plane of the tests' own: real HTTPS, scripted answers, bootstraps that a real Envoy takes.

It speaks no xDS: `static_bootstrap` puts an inbound in its place, so that Envoy comes up with something to serve.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

from kumadp import addresses

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable

    from tests.support.daemon import Ports

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
# Three parts, as a token has; the signature is nobody's.
TOKEN = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"RS256"}', b"{}", b"none"))


@dataclass(frozen=True)
class Answer:
    """One answer; ``hang`` keeps silent until the server closes, ``reset`` breaks the connection instead.

    ``drip`` are seconds between two bytes of the body (`tests.support.xds.front` only).
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    reset: bool = False
    drip: float = 0.0


def captured_answer(folder: str) -> Answer:
    """The answer of a real control plane to ``POST /bootstrap``; ``folder`` is below tests/data/captures."""
    text = (CAPTURES / folder / "bootstrap.yaml").read_bytes()
    sidecar = json.loads((CAPTURES / folder / "exchange.json").read_text())["kumaSidecarConfiguration"]
    body = {"bootstrap": base64.b64encode(text).decode(), "kumaSidecarConfiguration": sidecar}
    return Answer(200, json.dumps(body).encode(), {"content-type": "application/json"})


def bootstrap_answer(bootstrap: dict[str, Any], corefile_template: str | None = None) -> Answer:
    """A bootstrap as a control plane answers it to a request that accepts JSON."""
    networking: dict[str, Any] = {"isUsingTransparentProxy": False, "address": "127.0.0.1"}
    if corefile_template is not None:
        networking["corefileTemplate"] = base64.b64encode(corefile_template.encode()).decode()
    body = {
        "bootstrap": base64.b64encode(json.dumps(bootstrap).encode()).decode(),
        "kumaSidecarConfiguration": {"networking": networking},
    }
    return Answer(200, json.dumps(body).encode(), {"content-type": "application/json"})


class ScriptedControlPlane(ThreadingHTTPServer):
    """Answers ``POST /bootstrap``: the given answers in turn, the last one for ever."""

    daemon_threads = True

    def __init__(
        self,
        *answers: Answer,
        tls: bool = True,
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        not_after: datetime.datetime | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(addresses.socket_address(host, 0), _Handler)
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.names_seen: list[str | None] = []
        self.on_request: Callable[[int], None] = lambda _count: None
        self.closing = threading.Event()
        self.authority = trustme.CA()
        self.scheme = "https" if tls else "http"
        if tls:
            context = self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.sni_callback = self._note_name
            self.authority.issue_cert(*names, not_after=not_after).configure_cert(context)
            # The handshake belongs to the thread of the connection, or a client that leaves would end the server.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _note_name(self, _sock: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.names_seen.append(name)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"

    @property
    def ca(self) -> str:
        """The CA as PEM."""
        return self.authority.cert_pem.bytes().decode()

    def write_ca(self, path: Path) -> Path:
        """Write the CA into a file."""
        path.write_text(self.ca)
        return path

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        """Stop serving."""
        self.closing.set()
        self.shutdown()
        self.server_close()

    def __enter__(self) -> ScriptedControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedControlPlane

    def do_POST(self) -> None:
        server = self.server
        server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        server.headers_seen.append({"path": self.path, **{name.lower(): text for name, text in self.headers.items()}})
        server.on_request(len(server.requests))
        answer = server.next_answer()
        if answer.hang:
            server.closing.wait(60)
            return
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, text in {"content-length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


def socket_address(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"socketAddress": {"address": host, "portValue": port}}


def static_bootstrap(ports: Ports, application: int, admin: dict[str, Any] | None = None) -> dict[str, Any]:
    """Admin (on loopback unless given) and one TCP inbound in front of the application."""
    return {
        "node": {"id": "default.web-1", "cluster": "web"},
        "admin": {"address": admin or socket_address(ports.admin)},
        "staticResources": {
            "listeners": [static_listener("inbound", ports.inbound, "application")],
            "clusters": [static_cluster("application", socket_address(application))],
        },
    }


def static_listener(name: str, port: int, cluster: str, host: str = "127.0.0.1") -> dict[str, Any]:
    """A TCP listener that leads to a cluster."""
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "statPrefix": name,
        "cluster": cluster,
    }
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typedConfig": proxy}]
    return {"name": name, "address": socket_address(port, host), "filterChains": [{"filters": filters}]}


def static_cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    """A cluster with one endpoint."""
    endpoints = [{"lbEndpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": {"clusterName": name, "endpoints": endpoints},
    }
