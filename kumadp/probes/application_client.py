"""Client that probes an application as kubelet does: HTTP, TCP, gRPC. Each result is a status code for the probe.

Rules of kubelet (Kubernetes 1.27 and later, pkg/probe): no connection is kept, certificates are not verified, a
redirect is followed on the same host (ten requests at most), and a redirect to another host counts as success.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from kumadp import __version__
from kumadp.addresses import connect_address, with_port
from kumadp.host.net.application_socket import application_socket
from kumadp.probes.headers import forwarded
from kumadp.probes.probe_request import PREFIX, parse_scheme

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import ClientSession

    from kumadp.probes.probe_request import ProbeRequest

    # Returns the host at which the application on a port is probed: None if it must not be probed, empty if the host
    # is not known yet.
    HostLookup = Callable[[int], Awaitable[str | None]]

log = logging.getLogger("kumadp.probes")

HEALTHY, UNHEALTHY = 200, 503
MAX_BODY = 10 * 1024
_MAX_HEAD = 1 << 20
MAX_REQUESTS = 10
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_REDIRECTS = {301, 302, 303, 307, 308}


class ApplicationClient:
    """Probes applications. ``sourced``: from the address that transparent proxying does not redirect, if present."""

    def __init__(self, *, sourced: bool) -> None:
        self._sourced = sourced
        self._client: ClientSession | None = None
        self._warned: set[str] = set()

    async def close(self) -> None:
        """Close the HTTP session."""
        if self._client is not None:
            await self._client.close()

    async def http(self, host: str, request: ProbeRequest, headers: Mapping[str, str], host_of: HostLookup) -> int:
        """Return the application's status code if it is an error, else HEALTHY.

        Raises OSError, ClientError, ValueError.
        """
        scheme = parse_scheme(headers)
        if scheme is None:
            return UNHEALTHY
        query = f"?{request.query}" if request.query else ""
        url = f"{scheme}://{with_port(host, request.port)}{request.path}{query}"
        forwarded_headers = [(name, value) for name, value in forwarded(headers) if name.lower() != "host"]
        if "user-agent" not in {name.lower() for name, _ in forwarded_headers}:
            forwarded_headers.append(("User-Agent", f"kuma-probe/{__version__}"))
        host_header = headers.get(PREFIX + "host", "")
        for _ in range(MAX_REQUESTS):
            sent = [*forwarded_headers, ("Host", host_header)] if host_header else forwarded_headers
            status, location = await self._get(url, sent)
            if status not in _REDIRECTS or not location:
                return HEALTHY if 200 <= status < 400 else status if status >= 400 else UNHEALTHY
            following = urljoin(url, location)
            if not await self._may_follow(following, host, host_of):
                return HEALTHY
            if urlsplit(location).netloc:
                # Go keeps an explicit Host header unless the redirect names another host.
                host_header = ""
            url = following.partition("#")[0]
        log.debug("%s: more than %d redirects", url, MAX_REQUESTS)
        return UNHEALTHY

    async def _may_follow(self, url: str, host: str, host_of: HostLookup) -> bool:
        parts = urlsplit(url)
        if parts.hostname != host.lower():
            reason = "leads to another host"
        elif parts.scheme not in {"http", "https"} or not await host_of(
            parts.port or (443 if parts.scheme == "https" else 80)
        ):
            reason = "leads to a port that may not be probed"
        else:
            return True
        if len(self._warned) < 100 and reason + host not in self._warned:
            self._warned.add(reason + host)
            log.warning("redirect of the application at %s %s: not followed, counts as success", host, reason)
        return False

    async def _get(self, url: str, headers: list[tuple[str, str]]) -> tuple[int, str]:
        from aiohttp import ClientTimeout
        from yarl import URL

        client = self._client = self._client or _client(self.socket)
        async with client.get(
            URL(url, encoded=True), headers=headers, allow_redirects=False, timeout=ClientTimeout(total=None)
        ) as response:
            read = 0
            async for part in response.content.iter_any():
                read += len(part)
                if read >= MAX_BODY:
                    break
            return response.status, response.headers.get("Location", "")

    async def tcp(self, host: str, port: int) -> int:
        """Connect; return HEALTHY. Raises OSError."""
        sock = self.socket(_family(host))
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
            await asyncio.get_running_loop().sock_connect(sock, connect_address(host, port))
        finally:
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


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _client(make: Callable[[int], socket.socket]) -> ClientSession:
    from aiohttp import ClientSession, DummyCookieJar, TCPConnector

    return ClientSession(
        connector=TCPConnector(force_close=True, limit=0, ssl=_unverified(), socket_factory=lambda info: make(info[0])),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        max_line_size=_MAX_HEAD,
        max_field_size=_MAX_HEAD,
    )


def _unverified() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Short keys, which OpenSSL rejects by default, are accepted: certificates are not verified anyway.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context
