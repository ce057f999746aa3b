"""A small HTTP/1.1 client for one Unix socket: a request every second must cost next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

# Envoy sends a body of any size as one; this is far more than the names of a mesh need (bytes).
MAX_BODY = 10 << 20
_MAX_HEAD = 64 << 10
_READ_SIZE = 64 << 10
# After so many chunks the event loop gets a turn.
_CHUNKS_PER_TURN = 100
_MAX_TRAILERS = 100
_NO_BODY = {204, 304}


class InvalidResponse(Exception):
    """The response is not valid HTTP, or too large."""


class SocketResponse(Struct, frozen=True):
    """A response with any status; ``etag`` as it was sent, empty if there is none."""

    status: int
    etag: str
    body: bytes


class SocketClient:
    """Sends requests to a Unix socket, one at a time; the connection is kept for the next one."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, target: str, etag: str = "") -> SocketResponse:
        """Return the response to a GET, sent with ``If-None-Match`` if an etag is given.

        Raises FileNotFoundError or ConnectionRefusedError if nobody listens, InvalidResponse, and OSError otherwise.
        The caller sets a deadline; a request that is cancelled closes the connection.
        """
        match = f"if-none-match: {etag}\r\n" if etag else ""
        request = f"GET {target} HTTP/1.1\r\nhost: localhost\r\n{match}\r\n".encode("latin-1")
        if self._writer is not None:
            # The server that accepted this connection may be gone, or draining with an outdated response.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                response = await self._exchange(request)
                if self._writer is not None:
                    return response
        self.close()
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=_MAX_HEAD)
            return await self._exchange(request)
        except asyncio.IncompleteReadError:
            raise InvalidResponse("the response ended too early") from None

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _exchange(self, request: bytes) -> SocketResponse:
        reader, writer = self._reader, self._writer
        assert reader is not None  # noqa: S101
        assert writer is not None  # noqa: S101
        keep_open = False
        try:
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise InvalidResponse("its head is too long") from None
            status, headers = _parse(head)
            body = b"" if status in _NO_BODY else await _body(reader, headers)
            framed = status in _NO_BODY or "content-length" in headers or "transfer-encoding" in headers
            keep_open = framed and headers.get("connection", "").lower() != "close"
            return SocketResponse(status, headers.get("etag", ""), body)
        finally:
            if not keep_open:
                self.close()


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdecimal():
        raise InvalidResponse("it is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    return int(status), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunked(reader)
    if (length := headers.get("content-length")) is not None:
        return await reader.readexactly(_size(length, 10))
    body = bytearray()
    while part := await reader.read(_READ_SIZE):
        body += part
        _check(len(body))
    return bytes(body)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    try:
        chunks = 0
        while size := _size((await reader.readuntil(b"\r\n")).partition(b";")[0].decode("latin-1"), 16):
            _check(len(body) + size)
            body += (await reader.readexactly(size + 2))[:-2]
            chunks += 1
            if chunks % _CHUNKS_PER_TURN == 0:
                # Data that has arrived already is read without waiting.
                await asyncio.sleep(0)
        for _ in range(_MAX_TRAILERS):
            if await reader.readuntil(b"\r\n") == b"\r\n":
                break
        else:
            raise InvalidResponse("it has too many trailers")
    except asyncio.LimitOverrunError:
        raise InvalidResponse("one of its lines is too long") from None
    return bytes(body)


def _size(text: str, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError:
        raise InvalidResponse("a size in it is no number") from None
    if size < 0:
        raise InvalidResponse("a size in it is negative")
    _check(size)
    return size


def _check(size: int) -> None:
    if size > MAX_BODY:
        raise InvalidResponse(f"its body is larger than {MAX_BODY >> 20} MB")
