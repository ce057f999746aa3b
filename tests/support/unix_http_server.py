"""A server at a Unix socket that answers GETs with prepared responses, on the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def response(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    """Return an HTTP/1.1 response with its length."""
    lines = (f"HTTP/1.1 {status} Some Words", *headers)
    if status != 304:
        lines = (*lines, f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


@dataclass
class UnixHttpServer:
    """Sends ``responses`` by path, 404 for any other; a path in ``held`` is answered once its event is set.

    ``requests`` holds the path and If-None-Match of each request. A request with the etag of its response gets a 304.
    """

    path: Path
    responses: dict[str, bytes] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def count(self, path: str) -> int:
        return sum(requested == path for requested, _ in self.requests)

    def put(self, path: str, body: bytes, etag: str = "") -> None:
        self.responses[path] = response(200, body, *((f"Etag: {etag}",) if etag else ()))

    async def open(self) -> None:
        """Listen, as an Envoy that has this listener again."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        """Stop listening and close all connections; the socket file stays, as Envoy leaves it."""
        if self._server is not None:
            # Python 3.13 and later remove the file of a server that they close.
            kept = self.path.rename(self.path.with_suffix(".kept"))
            self._server.close()
            self._server = None
            kept.rename(self.path)
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split()[1]
                named = [line[15:] for line in head.split("\r\n") if line.lower().startswith("if-none-match: ")]
                etag = named[0] if named else ""
                self.requests.append((path, etag))
                if path in self.held:
                    await self.held[path].wait()
                reply = self.responses.get(path, response(404))
                if etag and f"Etag: {etag}\r\n".encode("latin-1") in reply:
                    reply = response(304)
                writer.write(reply)
                await writer.drain()
                lower = reply.lower()
                framed = b"content-length: " in lower or b" 304 " in lower
                if not framed or b"connection: close" in lower:
                    break
        self._writers.discard(writer)
        writer.close()


@contextlib.asynccontextmanager
async def unix_http_server(path: Path) -> AsyncIterator[UnixHttpServer]:
    """Yield a listening server, closed when the block ends."""
    server = UnixHttpServer(path)
    await server.open()
    try:
        yield server
    finally:
        for event in server.held.values():
            event.set()
        await server.close()
