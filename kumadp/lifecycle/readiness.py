"""The readiness port: ``/ready`` and nothing else, the state alone and no reason (Kuma 2.14: readiness reporter)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.host.serve import bind_tcp, serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from kumadp.lifecycle.status import ReadyState

HEADERS = {"content-type": "text/plain", "cache-control": "no-cache, max-age=0", "x-powered-by": "kuma-dp"}


class ReadinessServer:
    """Serves ``/ready``: 200 READY, 503 NOT_READY or TERMINATING. The port is bound when this is made (PortsTaken)."""

    name = "readiness"

    def __init__(self, host: str, port: int, state: Callable[[], ReadyState]) -> None:
        self._state = state
        self._socket = bind_tcp(host, port, "KUMA_READINESS_PORT")

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        await serve(self._answer, self._socket, up)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import web

        if request.path != "/ready":
            return web.Response(status=404, text="404: only /ready is here\n")
        state = self._state()
        return web.Response(status=200 if state == "READY" else 503, body=state.encode(), headers=HEADERS)
