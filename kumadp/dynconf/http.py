"""A small HTTP/1.1 client for one Unix socket: what is asked every second must cost next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Envoy sends a body of any size as one; this much is far more than a mesh has names.
LARGEST_BODY = 10 << 20
_LARGEST_HEAD = 64 << 10
_CHUNK = 64 << 10
_CHUNKS_OF_A_TURN = 100
_MOST_TRAILERS = 100
_NO_BODY = {204, 304}


class BadAnswer(Exception):
    """What came is no answer that can be used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``etag`` as it came, empty where none did; ``body`` that of any status."""

    status: int
    etag: str
    body: bytes


class SocketClient:
    """Asks at a Unix socket, one question at a time; the connection is kept for the next one."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, target: str, etag: str = "") -> Answer:
        """The answer to a GET, with ``If-None-Match`` where an etag is given.

        Raises FileNotFoundError or ConnectionRefusedError where nobody listens, BadAnswer, and OSError otherwise. Has
        no deadline of its own; a question that is cancelled costs the connection.
        """
        match = f"if-none-match: {etag}\r\n" if etag else ""
        question = f"GET {target} HTTP/1.1\r\nhost: localhost\r\n{match}\r\n".encode("latin-1")
        if self._writer is not None:
            # Who listened when it was opened may be gone, or be about to be replaced and answer as it was.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                answer = await self._ask(question)
                if self._writer is not None:
                    return answer
        self.close()
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=_LARGEST_HEAD)
            return await self._ask(question)
        except asyncio.IncompleteReadError:
            raise BadAnswer("the answer ended too early") from None

    def close(self) -> None:
        """Close the connection; the next question opens another one."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _ask(self, question: bytes) -> Answer:
        reader, writer = self._reader, self._writer
        assert reader is not None  # noqa: S101
        assert writer is not None  # noqa: S101
        goes_on = False
        try:
            writer.write(question)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise BadAnswer("its head is too long") from None
            status, headers = _parse(head)
            body = b"" if status in _NO_BODY else await _body(reader, headers)
            framed = status in _NO_BODY or "content-length" in headers or "transfer-encoding" in headers
            goes_on = framed and headers.get("connection", "").lower() != "close"
            return Answer(status, headers.get("etag", ""), body)
        finally:
            if not goes_on:
                self.close()


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not status.isdecimal():
        raise BadAnswer("it is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    return int(status), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunked(reader)
    if (told := headers.get("content-length")) is not None:
        return await reader.readexactly(_size(told, 10))
    body = bytearray()
    while part := await reader.read(_CHUNK):
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
            if chunks % _CHUNKS_OF_A_TURN == 0:
                # What has come already is read without waiting.
                await asyncio.sleep(0)
        for _ in range(_MOST_TRAILERS):
            if await reader.readuntil(b"\r\n") == b"\r\n":
                break
        else:
            raise BadAnswer("it has too many trailers")
    except asyncio.LimitOverrunError:
        raise BadAnswer("a line of it is too long") from None
    return bytes(body)


def _size(text: str, base: int) -> int:
    try:
        size = int(text, base)
    except ValueError:
        raise BadAnswer("a size in it is no number") from None
    if size < 0:
        raise BadAnswer("a size in it is negative")
    _check(size)
    return size


def _check(size: int) -> None:
    if size > LARGEST_BODY:
        raise BadAnswer(f"its body is larger than {LARGEST_BODY >> 20} MB")
