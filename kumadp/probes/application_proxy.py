"""The application probe proxy (Kuma 2.9 to 2.14): kubelet probes it, and it probes the application past the mesh.

Status codes and bodies are those of Kuma 2.14. Of the application's response only the status code is passed on.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import address_text, is_ip, with_port
from kumadp.host.net.serve import bind_tcp, serve
from kumadp.probes.application_client import UNHEALTHY, ApplicationClient
from kumadp.probes.probe_request import PREFIX, CleanPathRedirect, parse_request, parse_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from aiohttp import web

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.probes.application_client import HostLookup
    from kumadp.probes.probe_request import ProbeRequest

log = logging.getLogger("kumadp.probes")

# Concurrent probes of one application: an application that hangs must not delay the others.
MAX_PROBES_PER_APPLICATION = 20
HEADERS = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}


class ApplicationProbeProxy:
    """Serves probes. The constructor binds the port (raises PortsTaken).

    ``sourced``: applications are probed from the address that transparent proxying does not redirect.
    """

    name = "application probe proxy"

    def __init__(
        self,
        host: str,
        port: int,
        host_of: HostLookup,
        *,
        sourced: bool,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._connections = connections
        self._socket = bind_tcp(host, port, "KUMA_APPLICATION_PROBE_PROXY_PORT")
        self._host_of = host_of
        self._client = ApplicationClient(sourced=sourced)
        # By port, with the number of probes that use it or wait for it.
        self._slots: dict[int, tuple[asyncio.Semaphore, list[int]]] = {}
        self.answered = collections.Counter[str]()
        """Number of responses by status class, such as ``2xx``."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        try:
            await serve(self._counted, self._socket, up, name=self.name, connections=self._connections, abandon=True)
        finally:
            await self._client.close()

    async def _counted(self, request: web.BaseRequest) -> web.Response:
        response = await self._respond(request)
        self.answered[f"{response.status // 100}xx"] += 1
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        probe = parse_request(request.rel_url.raw_path, request.rel_url.raw_query_string)
        if isinstance(probe, CleanPathRedirect):
            return _redirect(probe.location)
        if probe is None:
            return _response(UNHEALTHY, "UNKNOWN")
        try:
            async with asyncio.timeout(parse_timeout(request.headers)):
                status = await self._probe(probe, request.headers)
        except TimeoutError:
            log.debug("port %d: no response in time", probe.port)
            status = UNHEALTHY
        if status is None:
            return _response(UNHEALTHY, "UNKNOWN")
        return _response(status, "HEALTHY" if status == 200 else "UNHEALTHY")

    async def _probe(self, probe: ProbeRequest, headers: Mapping[str, str]) -> int | None:
        """Return a status code; None if the port may not be probed."""
        from aiohttp import ClientError

        host = await self._host_of(probe.port)
        if not host:
            return None if host is None else UNHEALTHY
        async with self._slot(probe.port):
            try:
                address = await _resolve(host, probe.port)
                if probe.kind == "tcp":
                    return await self._client.tcp(address, probe.port)
                if probe.kind == "grpc":
                    return await self._client.grpc(address, probe.port, headers.get(PREFIX + "grpc-service", ""))
                return await self._client.http(address, probe, headers, self._host_of)
            except (OSError, ClientError, ValueError) as error:
                log.debug("%s: %s", with_port(host, probe.port), error)
                return UNHEALTHY

    @contextlib.asynccontextmanager
    async def _slot(self, port: int) -> AsyncIterator[None]:
        """Hold one of the application's probe slots; nothing is stored for ports without requests."""
        slots, users = self._slots.setdefault(port, (asyncio.Semaphore(MAX_PROBES_PER_APPLICATION), [0]))
        users[0] += 1
        try:
            async with slots:
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._slots.pop(port, None)


async def _resolve(host: str, port: int) -> str:
    """Return the first address of a host. Raises OSError."""
    if is_ip(host):
        return host
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return address_text(infos[0][4])


def _response(status: int, result: str) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, body=f"{result}\n".encode(), headers=HEADERS)


def _redirect(location: str) -> web.Response:
    """Return the redirect that Go sends (1.26; older versions send 301)."""
    from html import escape

    from aiohttp import web

    text = f'<a href="{escape(location)}">Temporary Redirect</a>.\n\n'
    return web.Response(status=307, text=text, content_type="text/html", headers={"location": location})
