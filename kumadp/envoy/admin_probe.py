"""Requests from whoever listens at an address what only Envoy's admin answers, in the ways that a client could.

Nothing that changes state is ever requested. Plain sockets, since a stranger may answer anything, slowly, without end.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    _Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytearray], Awaitable[None]]

# Read-only paths of the admin and what it alone answers there (Envoy 1.40). A route may lead to a single one of them.
ASKED: dict[str, bytes] = {
    "/server_info": b'"hot_restart_version"',
    "/config_dump": b"type.googleapis.com/envoy.admin.v3.",
    "/clusters": b"::observability_name::",
    "/stats?filter=server.live": b"server.live: ",
    "/": b"<title>Envoy Admin</title>",
}
_FIRST = "/server_info"
# The default header of a cluster that connects to where the client says (Envoy: OriginalDstLbConfig.use_http_header).
_DESTINATION = "x-envoy-original-dst-host"
_PROXY = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"
MAX_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class ProbeAddress:
    """An address to ask: host and port, or with an empty ``host`` the Unix socket at ``path`` (``@``: abstract)."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if not self.host:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """What to send as Host."""
        return str(self) if self.host else "localhost"


class AdminProber:
    """Sends requests to places; ``admin`` is the admin's own authority, ``timeout`` the seconds for one answer."""

    def __init__(self, admin: str, timeout: float, at_once: int = 16) -> None:
        self._admin = admin
        self._timeout = timeout
        self._slots = asyncio.Semaphore(at_once)

    async def is_admin(self, place: ProbeAddress) -> bool:
        """Whether anything at the place answers as an admin does; False also where nothing answers."""
        return any(await asyncio.gather(self._plain(place), self._tls(place)))

    async def _plain(self, place: ProbeAddress) -> bool:
        first = await self._http(place, None, _FIRST, place.authority)
        if _shows(first, _FIRST):
            return True
        if first.startswith(b"HTTP/"):
            return await self._further(place, None)
        return any(
            await asyncio.gather(
                self._shown(_FIRST, self._http(place, None, _FIRST, place.authority, before=_PROXY)),
                self._http2(place, None),
            )
        )

    async def _tls(self, place: ProbeAddress) -> bool:
        protocol, first = await self._hello(place)
        if protocol == "h2":
            return await self._http2(place, _context("h2"))
        return _shows(first, _FIRST) or (
            first.startswith(b"HTTP/") and await self._further(place, _context("http/1.1"))
        )

    async def _further(self, place: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """The other paths, and a proxy's requests, which name the admin."""
        own = [self._shown(path, self._http(place, tls, path, place.authority)) for path in ASKED if path != _FIRST]
        proxied = self._shown(_FIRST, self._http(place, tls, _FIRST, self._admin))
        return any(await asyncio.gather(*own, proxied, self._tunnel(place, tls)))

    async def _shown(self, path: str, asked: Awaitable[bytes]) -> bool:
        return _shows(await asked, path)

    async def _http(
        self, place: ProbeAddress, tls: ssl.SSLContext | None, path: str, authority: str, *, before: bytes = b""
    ) -> bytes:
        """The beginning of the answer to a GET on a connection of its own, empty where there is none."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            writer.write(before + self._request(path, authority))
            await _receive(reader, answer)

        return await self._talk(place, tls, talk)

    async def _tunnel(self, place: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """Whether a proxy leads to the admin by CONNECT."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            writer.write(f"CONNECT {self._admin} HTTP/1.1\r\nhost: {self._admin}\r\n\r\n".encode())
            if b" 200" in (await reader.readuntil(b"\r\n\r\n"))[:16]:
                writer.write(self._request(_FIRST, self._admin))
                await _receive(reader, answer)

        return _shows(await self._talk(place, tls, talk), _FIRST)

    async def _hello(self, place: ProbeAddress) -> tuple[str, bytes]:
        """What TLS agrees on, and the answer to a GET where that is not HTTP/2."""
        protocol = ""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            nonlocal protocol
            protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol() or ""
            if protocol != "h2":
                writer.write(self._request(_FIRST, place.authority))
                await _receive(reader, answer)

        first = await self._talk(place, _context("h2", "http/1.1"), talk)
        return protocol, first

    async def _http2(self, place: ProbeAddress, tls: ssl.SSLContext | None) -> bool:
        """Whether the admin answers over HTTP/2, without a negotiation where ``tls`` is None (RFC 9113, 3.3)."""
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import DataReceived
        from h2.exceptions import H2Error

        connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        bodies: dict[int, tuple[str, bytearray]] = {}

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytearray) -> None:
            connection.initiate_connection()
            scheme = "http" if tls is None else "https"
            for path, authority in [*((path, place.authority) for path in ASKED), (_FIRST, self._admin)]:
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

        return bool(await self._talk(place, tls, talk))

    def _request(self, path: str, authority: str) -> bytes:
        head = f"GET {path} HTTP/1.1\r\nhost: {authority}\r\n{_DESTINATION}: {self._admin}\r\n"
        # Compressed, a small answer could become a large one, and would show nothing.
        return f"{head}accept: */*\r\naccept-encoding: identity\r\nconnection: close\r\n\r\n".encode()

    async def _talk(self, place: ProbeAddress, tls: ssl.SSLContext | None, talk: _Talk) -> bytes:
        """A conversation on a connection of its own; what was answered until it broke or the time was over."""
        writer: asyncio.StreamWriter | None = None
        answer = bytearray()
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                if place.host:
                    reader, writer = await asyncio.open_connection(
                        place.host, place.port, ssl=tls, server_hostname="" if tls is not None else None
                    )
                else:
                    path = "\0" + place.path[1:] if place.path.startswith("@") else place.path
                    reader, writer = await asyncio.open_unix_connection(path)
                await talk(reader, writer, answer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            if is_exhausted(error):
                # No request was sent.
                raise
            # Whoever does not answer is no admin.
            return bytes(answer)
        finally:
            if writer is not None:
                writer.transport.abort()
        return bytes(answer)


async def _receive(reader: asyncio.StreamReader, answer: bytearray) -> None:
    """As much of an answer as can matter."""
    while len(answer) < MAX_BODY and (part := await reader.read(MAX_BODY)):
        answer += part
        if any(sign in answer for sign in ASKED.values()):
            return


def _shows(answer: bytes | bytearray, path: str) -> bool:
    return ASKED[path] in answer


def _context(*protocols: str) -> ssl.SSLContext:
    """No certificate is verified: what matters is whether a stranger gets an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context
