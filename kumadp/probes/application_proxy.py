"""The application probe proxy (Kuma 2.9 to 2.14): kubelet probes it, and it probes the application past the mesh.

Status codes and bodies are those of Kuma 2.14. Of the application's response only the status code is passed on.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
from typing import TYPE_CHECKING

from kumadp.addresses import with_port
from kumadp.host.net.host_lookup import numeric_addresses
from kumadp.host.net.http1.messages import PLAIN_TEXT, WholeResponse
from kumadp.host.net.http1.server import ServerOptions
from kumadp.host.net.serve import bind_tcp, serve_http1
from kumadp.probes.application_client import UNHEALTHY, ApplicationClient
from kumadp.probes.application_slots import ApplicationSlots
from kumadp.probes.probe_request import PREFIX, CleanPathRedirect, parse_request, parse_timeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.host.net.http1.fields import FieldList
    from kumadp.host.net.http1.messages import ServedRequest
    from kumadp.probes.application_client import HostLookup
    from kumadp.probes.probe_request import ProbeRequest

log = logging.getLogger("kumadp.probes")

HEADERS = (*PLAIN_TEXT, ("X-Content-Type-Options", "nosniff"))


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
        self._slots = ApplicationSlots()
        self.answered = collections.Counter[str]()
        """Number of responses by status class, such as ``2xx``."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        options = ServerOptions(abandon=True)
        await serve_http1(
            self._counted, self._socket, up, name=self.name, connections=self._connections, options=options
        )

    async def _counted(self, request: ServedRequest) -> WholeResponse:
        response = await self._respond(request)
        self.answered[f"{response.status // 100}xx"] += 1
        return response

    async def _respond(self, request: ServedRequest) -> WholeResponse:
        probe, fields = parse_request(request.path, request.query), request.head.fields
        if isinstance(probe, CleanPathRedirect):
            return _redirect(probe.location)
        if probe is None:
            return _response(UNHEALTHY, "UNKNOWN")
        try:
            async with asyncio.timeout(parse_timeout(fields)):
                status = await self._probe(probe, fields)
        except TimeoutError:
            log.debug("port %d: no response in time", probe.port)
            status = UNHEALTHY
        if status is None:
            return _response(UNHEALTHY, "UNKNOWN")
        return _response(status, "HEALTHY" if status == 200 else "UNHEALTHY")

    async def _probe(self, probe: ProbeRequest, fields: FieldList) -> int | None:
        """Return a status code; None if the port may not be probed."""
        host = await self._host_of(probe.port)
        if not host:
            return None if host is None else UNHEALTHY
        async with self._slots.take(probe.port):
            try:
                address = (await numeric_addresses(host, probe.port))[0]
                if probe.kind == "tcp":
                    return await self._client.tcp(address, probe.port)
                if probe.kind == "grpc":
                    return await self._client.grpc(address, probe.port, fields.get(PREFIX + "grpc-service"))
                return await self._client.http(address, probe, fields, self._host_of)
            except (OSError, ValueError) as error:
                log.debug("%s: %s", with_port(host, probe.port), error)
                return UNHEALTHY


@functools.lru_cache(64)
def _response(status: int, result: str) -> WholeResponse:
    return WholeResponse(status, f"{result}\n".encode(), HEADERS)


def _redirect(location: str) -> WholeResponse:
    """Return the redirect that Go sends (1.26; older versions send 301)."""
    from html import escape

    text = f'<a href="{escape(location)}">Temporary Redirect</a>.\n\n'
    fields = (("Content-Type", "text/html; charset=utf-8"), ("Location", location))
    return WholeResponse(307, text.encode("latin-1"), fields)
