"""Readiness: ``/ready`` and nothing else, the state alone and no reason (Kuma 2.14: readiness reporter)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from kumadp.addresses import ANY_IPV4, ANY_IPV6
from kumadp.bootstrap.fields import get
from kumadp.host.net.serve import serve
from kumadp.host.reexec import interim_responder

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from aiohttp import web

    from kumadp.core.status import ReadyState

HEADERS = {"content-type": "text/plain", "cache-control": "no-cache, max-age=0", "x-powered-by": "kuma-dp"}


class ReadinessServer:
    """Serves ``/ready`` on a listening socket: 200 READY, 503 NOT_READY or TERMINATING."""

    def __init__(self, name: str, sock: socket.socket, state: Callable[[], ReadyState]) -> None:
        self.name = name
        self._state = state
        self._socket = sock

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; the file of a Unix socket goes."""
        path = self._socket.getsockname()
        try:
            await serve(self._answer, self._socket, self._begin(up), name=self.name, prompt=True)
        finally:
            if isinstance(path, str):
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 - the kernel's text, not a Path

    def _begin(self, up: Callable[[], None]) -> Callable[[], None]:
        def begun() -> None:
            interim_responder.stop(self._socket)
            up()

        return begun

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import web

        if request.path != "/ready":
            return web.Response(status=404, text="404: only /ready is here\n")
        state = self._state()
        return web.Response(status=200 if state == "READY" else 503, body=state.encode(), headers=HEADERS)


def whole_answer(state: ReadyState) -> bytes:
    """What is answered while one kumadp follows another in the same process."""
    status = "200 OK" if state == "READY" else "503 Service Unavailable"
    fields = {**HEADERS, "content-length": str(len(state)), "connection": "close"}
    return "".join(
        (f"HTTP/1.1 {status}\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n", state)
    ).encode()


def readiness_host(bootstrap: Mapping[str, Any], address: str, environ: Mapping[str, str]) -> str:
    """Where ``/ready`` is to be reached beside loopback, empty where the bootstrap names no place.

    It is the address that the control plane wants for Envoy's admin (kubelet asks the pod's address). With an admin on
    a Unix socket, all addresses in a pod, loopback elsewhere, in the family of the data plane's ``address``
    (Kuma 2.14).
    """
    admin = get(bootstrap, "admin", "address")
    if get(admin, "pipe", "path"):
        in_pod, six = "POD_NAME" in environ, ":" in address
        return (ANY_IPV6 if six else ANY_IPV4) if in_pod else ("::1" if six else "127.0.0.1")
    return str(get(admin, "socketAddress", "address") or "")
