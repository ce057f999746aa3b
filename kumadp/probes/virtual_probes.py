"""Virtual probes: paths on one port that are proxied to the application, whether Envoy runs or not."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import unquote

from msgspec import Struct

from kumadp.addresses import authority, quoted_path
from kumadp.host.net.application_socket import application_socket
from kumadp.host.net.host_lookup import connect, numeric_addresses
from kumadp.host.net.http1.client import UpstreamResponse, encode_request, exchange
from kumadp.host.net.http1.messages import PLAIN_TEXT, WholeResponse
from kumadp.host.net.http1.server import ServerOptions
from kumadp.host.net.serve import bind_tcp, serve_http1
from kumadp.probes.application_slots import ApplicationSlots
from kumadp.probes.headers import forwarded, hop_by_hop, is_text
from kumadp.resources.workload import InboundPorts, workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.host.net.http1.messages import ServedRequest
    from kumadp.resources.types import Dataplane

log = logging.getLogger("kumadp.probes")

MAX_BODY = 64 * 1024
# kubelet's own default; for longer timeouts Kuma's injector writes `X-Kuma-Probes-Timeout` (whole seconds).
DEFAULT_TIMEOUT = 1.0
LONGEST_TIMEOUT = 60.0
# How long one of several addresses of an application is tried before the next (seconds; RFC 8305, 5).
_ATTEMPT = 0.25
# Methods that have no body unless the request has one; of others it is stated that it is empty (RFC 9110, 8.6).
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
TIMEOUT_HEADER = "X-Kuma-Probes-Timeout"


class ProbeTarget(Struct, frozen=True):
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
        self._slots = ApplicationSlots()
        self.answered = collections.Counter[str]()
        """Number of responses by status class, such as ``2xx``."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        options = ServerOptions(max_body=MAX_BODY + 1)
        await serve_http1(
            self._counted, self._socket, up, name=self.name, connections=self._connections, options=options
        )

    async def _counted(self, request: ServedRequest) -> WholeResponse:
        response = await self._respond(request)
        self.answered[f"{response.status // 100}xx"] += 1
        return response

    async def _respond(self, request: ServedRequest) -> WholeResponse:
        target = self._routes.find(unquote(request.path, errors="surrogateescape"))
        if target is None:
            return _text_response(404, "no such probe")
        try:
            async with asyncio.timeout(self._body_timeout):
                body = await request.read(MAX_BODY + 1) if request.body is not None else None
        except TimeoutError:
            return _text_response(408, f"the request did not end within {self._body_timeout:g} s")
        if body is not None and len(body) > MAX_BODY:
            return _text_response(413, f"a probe's body has at most {MAX_BODY} bytes")
        address = f"{target.host}:{target.port}"
        seconds = _timeout(request.head.fields.get(TIMEOUT_HEADER))
        try:
            async with asyncio.timeout(seconds), self._slots.take((target.host, target.port)):
                response = await _request(target, request, body)
        except TimeoutError:
            return _text_response(504, f"the application at {address} did not answer within {seconds:g} s")
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number).lower() if number and number > 0 else type(error).__name__
            return _text_response(503, f"the application at {address} cannot be reached: {reason}")
        return _forward_response(response, to_head=request.head.method == "HEAD")


async def _request(target: ProbeTarget, request: ServedRequest, body: bytes | None) -> UpstreamResponse:
    """Send a request to an application, at the first of its addresses that accepts. Raises OSError, ValueError."""
    head = request.head
    fields = forwarded(head.fields)
    if "host" not in head.fields.values:
        fields.insert(0, ("Host", authority(target.host, target.port)))
    if body is None and head.method not in _WITHOUT_BODY:
        body = b""
    sent = encode_request(head.method, _target(target, request.query), fields, body)
    sock = await _connect(target.host, target.port)
    return await exchange(sock, sent, max_body=MAX_BODY, to_head=head.method == "HEAD")


async def _connect(host: str, port: int) -> socket.socket:
    *others, last = await numeric_addresses(host, port)
    for address in others:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_ATTEMPT):
                return await connect(application_socket(_family(address), sourced=False), address, port)
    return await connect(application_socket(_family(last), sourced=False), last, port)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _forward_response(response: UpstreamResponse, *, to_head: bool) -> WholeResponse:
    head = response.head
    excluded = hop_by_hop(head.fields)
    if not to_head:
        excluded |= {"content-length"}
    fields = [(name, value) for name, value in head.fields.items() if name.lower() not in excluded and is_text(value)]
    reason = head.reason if is_text(head.reason) else None
    return WholeResponse(head.status, response.body, fields, reason or None, close=True)


def _target(target: ProbeTarget, query: str) -> str:
    """Return the target's own path and query, then the query of the request."""
    path, mark, own_query = target.path.partition("?")
    path = path if path.startswith("/") else f"/{path}"
    queries = "&".join(part for part in (own_query, query) if part)
    return quoted_path(path) + (f"?{queries}" if queries else mark)


def _timeout(text: str) -> float:
    if text.isascii() and text.isdigit() and 0 < int(text[:9]) <= LONGEST_TIMEOUT:
        return float(text)
    return DEFAULT_TIMEOUT


def _text_response(status: int, reason: str) -> WholeResponse:
    return WholeResponse(status, f"{reason}\n".encode(), PLAIN_TEXT, close=True)
