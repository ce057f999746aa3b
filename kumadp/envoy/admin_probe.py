"""Requests for what only Envoy's admin answers, to any address, in the ways that a client could send them.

Nothing that changes state is ever requested. Plain sockets, since a stranger may answer anything, slowly, without end.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.addresses import with_port
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytearray], Awaitable[None]]

# Read-only paths of the admin and what it alone answers there (Envoy 1.40). A route may lead to a single one of them.
PROBED_PATHS: dict[str, bytes] = {
    "/server_info": b'"hot_restart_version"',
    "/config_dump": b"type.googleapis.com/envoy.admin.v3.",
    "/clusters": b"::observability_name::",
    "/stats?filter=server.live": b"server.live: ",
    "/": b"<title>Envoy Admin</title>",
}
_FIRST = "/server_info"
# The default header of a cluster that connects to an address of the client's choice (Envoy:
# OriginalDstLbConfig.use_http_header).
_DESTINATION = "x-envoy-original-dst-host"
_PROXY = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"
MAX_BODY = 64 * 1024


class ProbeAddress(Struct, frozen=True):
    """An address to probe: host and port, or with an empty ``host`` the Unix socket at ``path`` (``@``: abstract)."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if not self.host:
            return f"unix:{self.path}"
        return with_port(self.host, self.port)

    @property
    def authority(self) -> str:
        """The value of the header ``Host``."""
        return str(self) if self.host else "localhost"


class AdminProber:
    """Sends requests to addresses; ``admin`` is the admin's own authority, ``timeout`` the seconds for one answer."""

    def __init__(self, admin: str, timeout: float, at_once: int = 16) -> None:
        self._admin = admin
        self._timeout = timeout
        self._slots = asyncio.Semaphore(at_once)

    async def is_admin(self, target: ProbeAddress) -> bool:
        """Return whether anything at the address answers as an admin does; False also if nothing answers."""
        return any(await asyncio.gather(self._plain(target), self._tls(target)))

    async def _plain(self, target: ProbeAddress) -> bool:
        first = await self._http(target, None, _FIRST, target.authority)
        if _shows(first, _FIRST):
            return True
        if first.startswith(b"HTTP/"):
            return await self._further(target, None)
        return any(
            await asyncio.gather(
                self._shown(_FIRST, self._http(target, None, _FIRST, target.authority, preamble=_PROXY)),
                self._http2(target, None),
            )
        )

    async def _tls(self, target: ProbeAddress) -> bool:
        protocol, first = await self._hello(target)
        if protocol == "h2":
            return await self._http2(target, _context("h2"))
        return _shows(first, _FIRST) or (
            first.startswith(b"HTTP/") and await self._further(target, _context("http/1.1"))
        )

    async def _further(self, target: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """Request the other paths, and the admin as a client of a proxy would."""
        direct = [
            self._shown(path, self._http(target, tls, path, target.authority))
            for path in PROBED_PATHS
            if path != _FIRST
        ]
        proxied = self._shown(_FIRST, self._http(target, tls, _FIRST, self._admin))
        return any(await asyncio.gather(*direct, proxied, self._tunnel(target, tls)))

    async def _shown(self, path: str, answer: Awaitable[bytes]) -> bool:
        return _shows(await answer, path)

    async def _http(
        self, target: ProbeAddress, tls: ssl.SSLContext | None, path: str, authority: str, *, preamble: bytes = b""
    ) -> bytes:
        """Return the beginning of the answer to a GET on a new connection, empty without an answer."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            writer.write(preamble + self._request(path, authority))
            await _receive(reader, answer)

        return await self._talk(target, tls, talk)

    async def _tunnel(self, target: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """Return whether a proxy leads to the admin by CONNECT."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            writer.write(f"CONNECT {self._admin} HTTP/1.1\r\nhost: {self._admin}\r\n\r\n".encode())
            if b" 200" in (await reader.readuntil(b"\r\n\r\n"))[:16]:
                writer.write(self._request(_FIRST, self._admin))
                await _receive(reader, answer)

        return _shows(await self._talk(target, tls, talk), _FIRST)

    async def _hello(self, target: ProbeAddress) -> tuple[str, bytes]:
        """Return the protocol that TLS negotiates, and the answer to a GET unless that is HTTP/2."""
        protocol = ""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            nonlocal protocol
            protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol() or ""
            if protocol != "h2":
                writer.write(self._request(_FIRST, target.authority))
                await _receive(reader, answer)

        first = await self._talk(target, _context("h2", "http/1.1"), talk)
        return protocol, first

    async def _http2(self, target: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """Return whether the admin answers over HTTP/2, without a negotiation if ``tls`` is None (RFC 9113, 3.3)."""
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import DataReceived
        from h2.exceptions import H2Error

        connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        bodies: dict[int, tuple[str, bytearray]] = {}

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            connection.initiate_connection()
            scheme = "http" if tls is None else "https"
            for path, authority in [*((path, target.authority) for path in PROBED_PATHS), (_FIRST, self._admin)]:
                stream = connection.get_next_available_stream_id()
                headers = [(":method", "GET"), (":scheme", scheme), (":authority", authority), (":path", path)]
                connection.send_headers(stream, [*headers, (_DESTINATION, self._admin)], end_stream=True)
                bodies[stream] = (path, bytearray())
            read = 0
            while read < 4 * MAX_BODY:
                writer.write(connection.data_to_send())
                data = await reader.read(MAX_BODY)
                read += len(data)
                try:
                    events = connection.receive_data(data) if data else []
                except H2Error:
                    return
                for event in events:
                    if isinstance(event, DataReceived) and event.stream_id in bodies:
                        path, body = bodies[event.stream_id]
                        body += event.data
                        if _shows(body, path):
                            answer += body
                            return
                if not data:
                    return

        return bool(await self._talk(target, tls, talk))

    def _request(self, path: str, authority: str) -> bytes:
        head = f"GET {path} HTTP/1.1\r\nhost: {authority}\r\n{_DESTINATION}: {self._admin}\r\n"
        # Compressed, a small answer could become a large one, and would show nothing.
        return f"{head}accept: */*\r\naccept-encoding: identity\r\nconnection: close\r\n\r\n".encode()

    async def _talk(self, target: ProbeAddress, tls: ssl.SSLContext | None, talk: _Talk) -> bytes:
        """Run ``talk`` on a new connection; returns what was answered until it broke or the time was over."""
        writer: asyncio.StreamWriter | None = None
        answer = bytearray()
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                server_hostname = "" if tls is not None else None
                if target.host:
                    reader, writer = await asyncio.open_connection(
                        target.host, target.port, ssl=tls, server_hostname=server_hostname
                    )
                else:
                    path = "\0" + target.path[1:] if target.path.startswith("@") else target.path
                    reader, writer = await asyncio.open_unix_connection(path, ssl=tls, server_hostname=server_hostname)
                await talk(reader, writer, answer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            if is_exhausted(error):
                # No request was sent.
                raise
            # What does not answer is no admin.
            return bytes(answer)
        finally:
            if writer is not None:
                writer.transport.abort()
        return bytes(answer)


async def _receive(reader: asyncio.StreamReader, answer: bytearray) -> None:
    """Read as much of an answer as can matter."""
    while len(answer) < MAX_BODY and (part := await reader.read(MAX_BODY)):
        answer += part
        if any(sign in answer for sign in PROBED_PATHS.values()):
            return


def _shows(answer: bytes | bytearray, path: str) -> bool:
    return PROBED_PATHS[path] in answer


def _context(*protocols: str) -> ssl.SSLContext:
    """Return a context that verifies no certificate: what matters is whether a stranger gets an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context
