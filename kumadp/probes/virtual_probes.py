"""Virtual probes: paths on one port that are proxied to the application, whether Envoy runs or not."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from kumadp.addresses import quoted_path, with_port
from kumadp.host.net.serve import bind_tcp, serve
from kumadp.probes.headers import forwarded, hop_by_hop, is_text
from kumadp.resources.workload import InboundPorts, workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiohttp import ClientResponse, ClientSession, StreamReader, web

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.resources.types import Dataplane

log = logging.getLogger("kumadp.probes")

MAX_BODY = 64 * 1024
# kubelet's own default; for longer timeouts Kuma's injector writes `X-Kuma-Probes-Timeout` (whole seconds).
DEFAULT_TIMEOUT = 1.0
LONGEST_TIMEOUT = 60.0
MAX_PROBES_PER_APPLICATION = 20
TIMEOUT_HEADER = "X-Kuma-Probes-Timeout"


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """The endpoint of the application to which a probe is proxied."""

    host: str
    port: int
    path: str


class ProbeRoutes:
    """The paths that are served: those of the Dataplane, or ``/<port>/<path>`` for a list of ports."""

    def __init__(
        self, listed: Mapping[str, ProbeTarget], generic_ports: Iterable[int] = (), generic_host: str = "127.0.0.1"
    ) -> None:
        self._listed = dict(listed)
        self._ports = frozenset(generic_ports)
        self._host = generic_host

    def find(self, path: str) -> ProbeTarget | None:
        """Return the target for a request's path (without query), None for 404."""
        target = self._listed.get(path)
        if target is not None or not self._ports:
            return target
        port, slash, rest = path.removeprefix("/").partition("/")
        if port.isascii() and port.isdigit() and int(port) in self._ports:
            return ProbeTarget(self._host, int(port), slash + rest or "/")
        return None


def routes_of(dataplane: Dataplane) -> ProbeRoutes:
    """Return the routes of a Dataplane's ``probes``: ``path`` leads to ``inboundPath`` on the application.

    `InboundPorts` finds the application that ``inboundPort`` means. A gateway has no inbound: the port is probed at its
    own address, to which Kuma redirects the client (2.8 to 2.14: ProbeProxyGenerator). A query in ``path`` is ignored
    (Kuma 2.8).
    """
    networking = dataplane.networking
    inbounds = InboundPorts(networking)
    listed = {}
    for endpoint in dataplane.probes.endpoints if dataplane.probes else ():
        probed = inbounds.probed(endpoint.inbound_port)
        if probed is not None:
            host, port = workload_of(networking, probed.inbound)
        elif networking.gateway is not None:
            host, port = networking.address, endpoint.inbound_port
        else:
            continue
        listed[unquote(endpoint.path.partition("?")[0])] = ProbeTarget(host, port, endpoint.inbound_path)
    return ProbeRoutes(listed)


class VirtualProbes:
    """Serves the routes. The constructor binds the port (raises PortsTaken).

    ``body_timeout``: how long a request may take to arrive (seconds).
    """

    name = "virtual probes"

    def __init__(
        self,
        host: str,
        port: int,
        routes: ProbeRoutes,
        *,
        body_timeout: float = LONGEST_TIMEOUT,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._connections = connections
        self._routes = routes
        self._body_timeout = body_timeout
        self._socket = bind_tcp(host, port, "probes.port")
        self._client: ClientSession | None = None
        self.answered = collections.Counter[str]()
        """Number of responses by status class, such as ``2xx``."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        try:
            await serve(self._counted, self._socket, up, name=self.name, connections=self._connections)
        finally:
            if self._client is not None:
                await self._client.close()

    def _session(self) -> ClientSession:
        if self._client is None:
            from aiohttp import ClientSession, DummyCookieJar, TCPConnector

            self._client = ClientSession(
                # The limit is per application, not in total: an application that hangs must not delay the others.
                connector=TCPConnector(force_close=True, limit=0, limit_per_host=MAX_PROBES_PER_APPLICATION),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        return self._client

    async def _counted(self, request: web.BaseRequest) -> web.Response:
        response = await self._respond(request)
        self.answered[f"{response.status // 100}xx"] += 1
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import ClientError, ClientTimeout
        from yarl import URL

        target = self._routes.find(request.path)
        if target is None:
            return _text_response(404, "no such probe")
        try:
            async with asyncio.timeout(self._body_timeout):
                request_body = await _read(request.content, MAX_BODY + 1) if request.can_read_body else None
        except TimeoutError:
            return _text_response(408, f"the request did not end within {self._body_timeout:g} s")
        if request_body is not None and len(request_body) > MAX_BODY:
            return _text_response(413, f"a probe's body has at most {MAX_BODY} bytes")
        address = f"{target.host}:{target.port}"
        url = URL(_url(target, request.rel_url.raw_query_string), encoded=True)
        seconds = _timeout(request.headers.get(TIMEOUT_HEADER, ""))
        try:
            async with asyncio.timeout(seconds):
                async with self._session().request(
                    request.method,
                    url,
                    headers=forwarded(request.headers),
                    data=request_body,
                    allow_redirects=False,
                    timeout=ClientTimeout(total=None),
                ) as response:
                    body = await _read(response.content, MAX_BODY)
        except TimeoutError:
            return _text_response(504, f"the application at {address} did not answer within {seconds:g} s")
        except (OSError, ClientError, ValueError) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number).lower() if number else type(error).__name__
            return _text_response(503, f"the application at {address} cannot be reached: {reason}")
        return _forward_response(response, body)


def _forward_response(response: ClientResponse, body: bytes) -> web.Response:
    from aiohttp import web
    from multidict import CIMultiDict

    excluded = hop_by_hop(response.headers) | {"content-length"}
    headers = CIMultiDict(
        (name, value) for name, value in response.headers.items() if name.lower() not in excluded and is_text(value)
    )
    headers["connection"] = "close"
    reason = response.reason if is_text(response.reason or "") else None
    forwarded_response = web.Response(status=response.status, reason=reason, headers=headers, body=body)
    forwarded_response.force_close()
    return forwarded_response


async def _read(content: StreamReader, limit: int) -> bytes:
    """Read at most ``limit`` bytes of a body."""
    data = bytearray()
    async for part in content.iter_chunked(16 * 1024):
        data += part
        if len(data) >= limit:
            break
    return bytes(data[:limit])


def _url(target: ProbeTarget, query: str) -> str:
    """Return the URL with the target's own path and query, then the query of the request."""
    path, mark, own_query = target.path.partition("?")
    path = path if path.startswith("/") else f"/{path}"
    queries = "&".join(part for part in (own_query, query) if part)
    return f"http://{with_port(target.host, target.port)}{quoted_path(path)}" + (f"?{queries}" if queries else mark)


def _timeout(text: str) -> float:
    if text.isascii() and text.isdigit() and 0 < int(text[:9]) <= LONGEST_TIMEOUT:
        return float(text)
    return DEFAULT_TIMEOUT


def _text_response(status: int, reason: str) -> web.Response:
    from aiohttp import web

    response = web.Response(status=status, text=reason + "\n", headers={"connection": "close"})
    response.force_close()
    return response
