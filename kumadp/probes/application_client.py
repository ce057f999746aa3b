"""Client that probes an application as kubelet does: HTTP, TCP, gRPC. Each result is a status code for the probe.

Rules of kubelet (Kubernetes 1.27 and later, pkg/probe): no connection is kept, certificates are not verified, a
redirect is followed on the same host (ten requests at most), and a redirect to another host counts as success.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from kumadp import __version__
from kumadp.addresses import authority, request_target, server_name, with_port
from kumadp.host.net.application_socket import application_socket
from kumadp.host.net.host_lookup import connect
from kumadp.host.net.http1.client import encode_request, exchange
from kumadp.probes.headers import forwarded
from kumadp.probes.probe_request import PREFIX, parse_scheme

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from kumadp.host.net.http1.fields import FieldList
    from kumadp.probes.probe_request import ProbeRequest

    # Returns the host at which the application on a port is probed: None if it must not be probed, empty if the host
    # is not known yet.
    HostLookup = Callable[[int], Awaitable[str | None]]

log = logging.getLogger("kumadp.probes")

HEALTHY, UNHEALTHY = 200, 503
MAX_BODY = 10 * 1024
MAX_REQUESTS = 10
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_REDIRECTS = {301, 302, 303, 307, 308}


class _Origin(NamedTuple):
    secure: bool
    host: str
    port: int


class ApplicationClient:
    """Probes applications. ``sourced``: from the address that transparent proxying does not redirect, if present."""

    def __init__(self, *, sourced: bool) -> None:
        self._sourced = sourced
        self._tls: ssl.SSLContext | None = None
        self._warned: set[str] = set()

    async def http(self, host: str, request: ProbeRequest, headers: FieldList, host_of: HostLookup) -> int:
        """Return the application's status code if it is an error, else HEALTHY. Raises OSError, ValueError."""
        scheme = parse_scheme(headers)
        if scheme is None:
            return UNHEALTHY
        query = f"?{request.query}" if request.query else ""
        origin = _Origin(scheme == "https", host, request.port)
        target = request.path + query
        url = f"{scheme}://{with_port(host, request.port)}{target}"
        host_field = headers.get(PREFIX + "host")
        for _ in range(MAX_REQUESTS):
            host_of_request = host_field or authority(host, origin.port)
            # kubelet sends the same probe again and again.
            sent = headers.derive((target, host_of_request), functools.partial(_encode_get, target, host_of_request))
            status, location = await self._get(origin, sent)
            if status not in _REDIRECTS or not location:
                return HEALTHY if 200 <= status < 400 else status if status >= 400 else UNHEALTHY
            following = urljoin(url, location)
            if not await self._may_follow(following, host, host_of):
                return HEALTHY
            if urlsplit(location).netloc:
                # Go keeps an explicit Host header unless the redirect names another host.
                host_field = ""
            url = following.partition("#")[0]
            parts = urlsplit(url)
            origin = _Origin(parts.scheme == "https", host, _port(parts))
            target = request_target((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        log.debug("%s: more than %d redirects", url, MAX_REQUESTS)
        return UNHEALTHY

    async def _may_follow(self, url: str, host: str, host_of: HostLookup) -> bool:
        parts = urlsplit(url)
        if parts.hostname != host.lower():
            reason = "leads to another host"
        elif parts.scheme not in {"http", "https"} or not await host_of(_port(parts)):
            reason = "leads to a port that may not be probed"
        else:
            return True
        if len(self._warned) < 100 and reason + host not in self._warned:
            self._warned.add(reason + host)
            log.warning("redirect of the application at %s %s: not followed, counts as success", host, reason)
        return False

    async def _get(self, origin: _Origin, request: bytes) -> tuple[int, str]:
        """Return the status code, and Location as text."""
        tls = None
        if origin.secure:
            tls = self._tls = self._tls or _unverified()
        sock = await connect(self.socket(_family(origin.host)), origin.host, origin.port)
        server = server_name(origin.host) if origin.secure else ""
        response = await exchange(sock, request, max_body=MAX_BODY, tls=tls, server=server)
        location = response.head.fields.get("location")
        return response.head.status, location.encode("latin-1").decode("utf-8", "surrogateescape")

    async def tcp(self, host: str, port: int) -> int:
        """Connect; return HEALTHY. Raises OSError."""
        sock = self.socket(_family(host))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
        await connect(sock, host, port)
        # With SO_LINGER this waits for the other side, for a second at most.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, sock.close))
        return HEALTHY

    async def grpc(self, host: str, port: int, service: str) -> int:
        """Return HEALTHY if the application reports SERVING (grpc/doc/health-checking.md). Raises OSError."""
        from kumadp.grpc.call import OK, StreamEnded
        from kumadp.grpc.client import connect

        target = with_port(host, port)
        sock = self.socket(_family(host))
        connection = await connect(
            (host, port), authority=target, tls=None, server_name="", ping=(60.0, 20.0), sock=sock
        )
        status = 0
        try:
            call = await connection.call(_HEALTH_CHECK, {}, agent=f"kube-probe/{__version__}")
            try:
                await call.send(encode_check(service), last=True)
                status = parse_status(await call.receive())
                await call.receive()
            finally:
                call.close()
        except StreamEnded as end:
            if end.status == OK and status == 1:
                return HEALTHY
            log.debug("gRPC health of %s: status %s, %s", target, end.status, end.text)
        finally:
            await connection.close()
        return UNHEALTHY

    def socket(self, family: int) -> socket.socket:
        """Return a socket to connect with."""
        return application_socket(family, sourced=self._sourced)


def encode_check(service: str) -> bytes:
    """Encode a ``HealthCheckRequest``: field 1 is the service."""
    name = service.encode("utf-8", "surrogateescape")
    return b"\x0a" + _varint(len(name)) + name if name else b""


def parse_status(message: bytes) -> int:
    """Return field 1 of a ``HealthCheckResponse``: 1 is SERVING; 0 (UNKNOWN) if it is missing or not a number."""
    if len(message) < 2 or message[0] != 0x08 or message[1] > 0x7F:
        return 0
    return message[1]


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _encode_get(target: str, host_field: str, fields: FieldList) -> bytes:
    """Return the request to an application, for the fields of a probe."""
    sent = [pair for pair in forwarded(fields) if pair[0].lower() != "host"]
    if not fields.get("user-agent"):
        sent.append(("User-Agent", f"kuma-probe/{__version__}"))
    return encode_request("GET", target, [("Host", host_field), *sent])


def _port(parts: SplitResult) -> int:
    """Return the port of a URL. Raises ValueError."""
    return parts.port or (443 if parts.scheme == "https" else 80)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _unverified() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Short keys, which OpenSSL rejects by default, are accepted: certificates are not verified anyway.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context
