"""Readiness: ``/ready`` and nothing else, the state alone and no reason (Kuma 2.14: readiness reporter)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from kumadp.addresses import ANY_IPV4, ANY_IPV6, LOOPBACK, is_ip, with_port
from kumadp.bootstrap.fields import get
from kumadp.core.part import Part
from kumadp.errors import PortsTaken
from kumadp.host.net.http1.messages import PLAIN_TEXT, WholeResponse
from kumadp.host.net.http1.server import ServerOptions
from kumadp.host.net.serve import bind_tcp, bind_unix, serve_http1
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.reexec import interim_responder
from kumadp.host.socket_names import READINESS, kuma_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.core.status import ReadyState
    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.host.net.http1.messages import ServedRequest

HEADERS = {"content-type": "text/plain", "cache-control": "no-cache, max-age=0", "x-powered-by": "kuma-dp"}


class ReadinessServer:
    """Serves ``/ready`` on a listening socket: 200 READY, 503 NOT_READY or TERMINATING."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        state: Callable[[], ReadyState],
        connections: ConnectionLimits | None = None,
    ) -> None:
        self.name = name
        self._connections = connections
        self._state = state
        self._socket = sock

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; the file of a Unix socket goes."""
        path = self._socket.getsockname()
        try:
            await serve_http1(
                self._answer,
                self._socket,
                self._on_up(up),
                name=self.name,
                connections=self._connections,
                options=ServerOptions(),
                prompt=True,
            )
        finally:
            if isinstance(path, str):
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 - the kernel's text, not a Path

    def _on_up(self, up: Callable[[], None]) -> Callable[[], None]:
        def begun() -> None:
            interim_responder.stop(self._socket)
            up()

        return begun

    async def _answer(self, request: ServedRequest) -> WholeResponse:
        if request.path != "/ready":
            return WholeResponse(404, b"404: only /ready is here\n", PLAIN_TEXT)
        state = self._state()
        return WholeResponse(200 if state == "READY" else 503, state.encode(), tuple(HEADERS.items()))


def whole_answer(state: ReadyState) -> bytes:
    """Return the whole answer of the interim responder during a re-execution."""
    status = "200 OK" if state == "READY" else "503 Service Unavailable"
    fields = {**HEADERS, "content-length": str(len(state)), "connection": "close"}
    return "".join(
        (f"HTTP/1.1 {status}\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n", state)
    ).encode()


def readiness_host(bootstrap: Mapping[str, Any], address: str, environ: Mapping[str, str]) -> str:
    """Return where ``/ready`` is served beside loopback, empty if the bootstrap names no place.

    It is the address that the control plane wants for Envoy's admin (kubelet probes the pod's). With an admin on
    a Unix socket, all addresses in a pod, loopback elsewhere, in the family of the data plane's ``address``
    (Kuma 2.14).
    """
    admin = get(bootstrap, "admin", "address")
    if get(admin, "pipe", "path"):
        in_pod, six = "POD_NAME" in environ, ":" in address
        return (ANY_IPV6 if six else ANY_IPV4) if in_pod else ("::1" if six else "127.0.0.1")
    return str(get(admin, "socketAddress", "address") or "")


class ReadinessPart(Part):
    """``/ready`` on loopback from the first moment, on a socket that control planes of 2.12 and 2.13 query, and where
    the bootstrap wants it.
    """

    name = "readiness"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._widened = False

    async def start(self) -> None:
        """Serve from now on; raises PortsTaken, WorkDirError."""
        context = self._context
        self._port = context.settings.readiness_port
        self._loopback = self._bind(LOOPBACK)
        self._serve("readiness", self._loopback, f"http://{LOOPBACK}:{self._port}/ready")
        if not context.standalone and not context.settings.readiness_unix_socket_disabled:
            path = kuma_socket(context.work.sockets, READINESS)
            self._serve("readiness socket", bind_unix(path), str(path))
            inherited.register_probed("unix", str(path), 0)

    async def on_bootstrap(self, prepared: Prepared) -> None:
        """Serve where the first bootstrap wants it too; if that fails, it costs this address alone."""
        fetched, context = prepared.fetched, self._context
        if fetched is None or self._widened:
            return
        self._widened = True
        host = readiness_host(fetched.tree, fetched.address or context.settings.instance_ip, context.environ)
        if not is_ip(host) or host == LOOPBACK:
            return
        name = f"readiness on {host}"
        try:
            sock = self._bind(host, beside=self._loopback)
        except PortsTaken as error:
            self._context.status.mark_failed(name, str(error))
            return
        self._serve(name, sock, f"http://{with_port(host, self._port)}/ready")

    def _bind(self, host: str, beside: socket.socket | None = None) -> socket.socket:
        inherited.register_probed("tcp", host, self._port)
        return bind_tcp(host, self._port, "KUMA_READINESS_PORT", beside=beside)

    def _serve(self, name: str, sock: socket.socket, shown: str) -> None:
        status = self._context.status
        self._context.stack.start(ReadinessServer(name, sock, lambda: status.ready_state, status.connections))
        status.ports[name] = shown
