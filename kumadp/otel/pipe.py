"""Pipe that serves the OpenTelemetry backends of the control plane (Kuma 2.14).

A backend is served by `kumadp.otel.backend_server`, which is imported with the first backend.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from kumadp.errors import WorkDirError
from kumadp.host.net.serve import bind_unix
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.socket_names import OTEL
from kumadp.otel.backend_spec import DEFAULT_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.otel.backend_server import BackendServer
    from kumadp.otel.backend_spec import BackendSpec, PipeLimits

log = logging.getLogger("kumadp.otel")


# Sockets inherited over a re-execution are closed if no backend claims them within this time (seconds).
_CLAIM_SECONDS = 30.0


class Pipe:
    """Serves all backends. ``folder`` is the only directory in which their sockets may be.

    ``set_warning`` is called with the name of a backend and a text, empty when the backend is well again. `apply` may
    be called while `run` runs.
    """

    name = "OpenTelemetry pipe"

    def __init__(
        self,
        folder: Path,
        set_warning: Callable[[str, str], None],
        *,
        limits: PipeLimits = DEFAULT_LIMITS,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._connections = connections
        self._folder = folder
        # Inherited from the previous program: clients that connect wait until their backend is applied again.
        self._unclaimed = {path: bind_unix(path) for path in inherited.paths(folder, OTEL)}
        self._set_warning = set_warning
        self._limits = limits
        self._servers: dict[Path, BackendServer] = {}

    async def run(self, up: Callable[[], None]) -> None:
        """Serve the backends until cancelled."""
        up()
        timer = asyncio.get_running_loop().call_later(_CLAIM_SECONDS, self._close_unclaimed)
        try:
            await asyncio.Event().wait()
        finally:
            timer.cancel()
            self._close_unclaimed()
            await asyncio.gather(*(server.close() for server in self._servers.values()))
            self._servers.clear()

    async def apply(self, backends: Sequence[BackendSpec]) -> None:
        """Serve these backends and no others; raises WorkDirError if some cannot be served, after the others are."""
        desired = {backend.socket: backend for backend in backends}
        outdated = [path for path, server in self._servers.items() if desired.get(path) != server.spec]
        stopped = [self._servers.pop(path) for path in outdated]
        await asyncio.gather(*(server.close() for server in stopped))
        for server in stopped:
            log.info("OpenTelemetry backend %s: its socket is closed", server.label)
            self._set_warning(server.label, "")
        failures = []
        for path, backend in desired.items():
            if path in self._servers:
                continue
            try:
                self._servers[path] = await self._start(backend)
            except WorkDirError as error:
                failures.append(str(error))
        self._close_unclaimed()
        if failures:
            raise WorkDirError("; ".join(failures))

    def sends(self, socket: Path, signal: str) -> bool:
        """Return whether this signal of the backend with this socket is sent to a collector."""
        server = self._servers.get(socket)
        return server is not None and not server.spec.routes[signal].why_not

    def status(self) -> dict[str, object]:
        """Return JSON types, by the socket's name."""
        return {server.spec.socket.name: server.status() for server in self._servers.values()}

    def _close_unclaimed(self) -> None:
        for path, sock in self._unclaimed.items():
            sock.close()
            path.unlink(missing_ok=True)
        self._unclaimed.clear()

    async def _start(self, spec: BackendSpec) -> BackendServer:
        path = spec.socket
        if path.parent != self._folder or not path.name.endswith(".sock"):
            # Binding replaces any file at this path.
            raise WorkDirError(f"the socket {path} of an OpenTelemetry backend is not in {self._folder}")
        module = await asyncio.to_thread(import_module, "kumadp.otel.backend_server")
        sock = self._unclaimed.pop(path, None) or await asyncio.to_thread(bind_unix, path)
        server: BackendServer = module.BackendServer(spec, sock, self._set_warning, self._limits, self._connections)
        await server.start()
        routes = ", ".join(f"{name} to {route}" for name, route in spec.routes.items() if not route.why_not)
        log.info("OpenTelemetry backend %s: %s", server.label, routes or "no signal can be sent")
        return server
