"""The owner-only control socket: the whole status as JSON, and the actions of a running daemon.

``POST /reload`` answers when it is done, with one line under ``said``. ``POST /reexec`` answers before it is
done, with ``count``, how often this process was re-executed so far: it is done when ``count`` under ``reexec`` in the
status is higher, and has failed when ``failed`` there, empty or absent until then, has the reason. What is rejected is
answered with 409 and ``why``. ``POST /log-level`` takes levels as the query of its URL. ``GET /metrics`` is kumadp's
own metrics, in Prometheus' text format.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kumadp.core.part import Part
from kumadp.errors import KumadpError
from kumadp.host.net.serve import bind_unix, serve
from kumadp.host.net.socket_paths import control_socket_path
from kumadp.host.net.unix_http import peer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from aiohttp import web

    from kumadp.core.context import Context

    Action = Callable[[], Awaitable[Mapping[str, object]]]
    Page = Callable[[], Awaitable[tuple[bytes, str]]]
    Order = Callable[[Mapping[str, str]], Awaitable[Mapping[str, object]]]
    from kumadp.host.net.connection_limit import ConnectionLimits

log = logging.getLogger("kumadp.daemon")


class ControlServer:
    """Serves ``GET /status`` and ``POST /<action>`` to our own user and root.

    An action returns its answer (JSON types) or raises KumadpError with the reason why not. An order is an action that
    gets the query of its URL. A page is what else can be read, by path: body and content type. The socket is bound when
    this is made; raises WorkDirError.
    """

    name = "control socket"

    def __init__(
        self,
        path: Path,
        status: Callable[[], dict[str, object]],
        actions: Mapping[str, Action] | None = None,
        orders: Mapping[str, Order] | None = None,
        pages: Mapping[str, Page] | None = None,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._path = path
        self._status = status
        self._connections = connections
        self._actions = {f"/{name}": _without_query(action) for name, action in (actions or {}).items()}
        self._actions |= {f"/{name}": order for name, order in (orders or {}).items()}
        self._socket = bind_unix(path)
        self._pages = dict(pages or {})

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled; the socket file goes."""
        try:
            await serve(self._answer, self._socket, up, name=self.name, connections=self._connections)
        finally:
            self._path.unlink(missing_ok=True)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import web

        peer = request.transport.get_extra_info("socket") if request.transport else None
        if peer is None or peer_of(peer).uid not in {0, os.geteuid()}:
            return web.Response(status=403, text="only for the owner\n")
        if request.method == "GET" and (page := self._pages.get(request.path)) is not None:
            body, kind = await page()
            return web.Response(body=body, headers={"content-type": kind})
        action = self._actions.get(request.path)
        if action is None and request.path != "/status":
            paths = " and ".join(("/status", *self._pages, *self._actions))
            return web.json_response({"why": f"only {paths} here"}, status=404)
        if (request.method == "POST") is (action is None):
            return web.json_response({"why": f"{request.path} is not for {request.method}"}, status=405)
        if action is None:
            return web.json_response(self._status())
        try:
            return web.json_response(await action(request.query))
        except KumadpError as error:
            return web.json_response({"why": str(error)}, status=409)
        except Exception as error:
            log.exception("%s failed", request.path)
            return web.json_response({"why": f"a bug in kumadp: {type(error).__name__}: {error}"}, status=500)


def _without_query(action: Action) -> Order:
    def order(_query: Mapping[str, str]) -> Awaitable[Mapping[str, object]]:
        return action()

    return order


class ControlPart(Part):
    """The control socket of this run. ``actions``, ``orders`` and ``pages`` as in `ControlServer`."""

    name = "control socket"

    def __init__(
        self,
        context: Context,
        actions: Mapping[str, Action],
        orders: Mapping[str, Order],
        pages: Mapping[str, Page],
    ) -> None:
        self._context = context
        self._actions = actions
        self._orders = orders
        self._pages = pages

    async def start(self) -> None:
        """Serve from now on; without a private folder only a warning is logged. Raises WorkDirError."""
        context = self._context
        try:
            path = control_socket_path(context.name, context.environ, context.work.path)
        except OSError as error:
            log.warning("no control socket: %s", error)
            return
        server = ControlServer(
            path, context.status.snapshot, self._actions, self._orders, self._pages, context.status.connections
        )
        context.stack.start(server)
