"""A server at a Unix socket that answers GETs as it is told, on the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def answer(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    """An answer of HTTP/1.1 with its length."""
    lines = (f"HTTP/1.1 {status} Some Words", *headers)
    if status != 304:
        lines = (*lines, f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


@dataclass
class Answers:
    """``of`` has an answer for each path, 404 where none; what is ``held`` is not answered until it is set.

    ``asked`` has each question: path and If-None-Match. Where etags are known, an answer with that of the question is
    a 304 by itself.
    """

    path: Path
    of: dict[str, bytes] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)

    def put(self, path: str, body: bytes, etag: str = "") -> None:
        self.of[path] = answer(200, body, *((f"Etag: {etag}",) if etag else ()))

    async def open(self) -> None:
        """Listen, as an Envoy that has this listener again."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        """Listen no more; the file stays, as Envoy leaves it, and connections end."""
        if self._server is not None:
            self._server.close()
            self._server = None
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
                self.asked.append((path, etag))
                if path in self.held:
                    await self.held[path].wait()
                found = self.of.get(path, answer(404))
                if etag and f"Etag: {etag}\r\n".encode("latin-1") in found:
                    found = answer(304)
                writer.write(found)
                await writer.drain()
                lower = found.lower()
                framed = b"content-length: " in lower or b" 304 " in lower
                if not framed or b"connection: close" in lower:
                    break
        self._writers.discard(writer)
        writer.close()


@contextlib.asynccontextmanager
async def answers(path: Path) -> AsyncIterator[Answers]:
    """A server that listens; closed in the end."""
    made = Answers(path)
    await made.open()
    try:
        yield made
    finally:
        for event in made.held.values():
            event.set()
        await made.close()
