"""gRPC streams of raw messages, client and server, over grpclib's HTTP/2: no codec, no protobuf runtime.

grpclib's own client and server are not used: they encode messages, log tracebacks when a peer disconnects, and cancel
tasks from within. A `Call` is one stream; its end is always the exception `StreamEnded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import zlib
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote

from grpclib.protocol import H2Protocol
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived
from h2.exceptions import H2Error
from msgspec import Struct

from kumadp.records import hiding

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpclib.protocol import Stream

# hpack logs every header that it encodes, including the token, and grpclib the events of its streams.
for _name in ("hpack", "grpclib"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# Status codes of gRPC (grpc/doc/statuscodes.md) that are distinguished here.
OK, UNIMPLEMENTED, UNAVAILABLE = 0, 12, 14
# Bytes sent at once, before the loop may run other callbacks. Four frames: from the fifth write to a peer that has
# disconnected, asyncio logs a warning each.
SLICE = 64 << 10
# Bytes received in one turn of the loop.
BURST = 256 << 10
LARGEST = 256 << 20
# Bytes kept of the start and of the end of a message that was too large.
KEPT = 16 << 10
# Seconds for a TLS peer to confirm the end; a dead one never does.
SHUTDOWN_SECONDS = 1.0


class StreamEnded(Exception):
    """A stream has ended. ``status`` is its gRPC code, None if stream or connection broke; ``text`` is the reason."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Oversized(Struct, frozen=True):
    """A message that was too large and was dropped: its size in bytes, its first and last ``KEPT`` bytes."""

    size: int
    head: bytes
    tail: bytes

    __repr__ = hiding("head", "tail")


class _BreakHook(Wrapper):
    """Calls ``on_break``, instead of cancelling tasks as grpclib does, if a stream is reset or its connection lost."""

    def __init__(self, on_break: Callable[[str], None]) -> None:
        super().__init__()
        self._call_on_break = on_break

    def cancel(self, error: Exception) -> None:
        self._call_on_break(str(error))


class Call:
    """One bidirectional stream of messages. One task reads, one writes; their owner stops the writer at the end."""

    def __init__(self, stream: Stream, release: Callable[[], None]) -> None:
        self._stream = stream
        self._release: Callable[[], None] | None = release
        self._broken = ""
        self._finished = False
        stream.wrapper = _BreakHook(self._on_break)

    def _on_break(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._stream.buffer.eof()

    async def receive(self, *, unpack: bool = False, largest: int = LARGEST) -> bytes:
        """Return the next message, of at most ``largest`` bytes; a gzip-compressed one only with ``unpack``.

        Raises StreamEnded.
        """
        message = await self._receive(largest, unpack=unpack, skip=False)
        assert isinstance(message, bytes)  # noqa: S101 - Oversized only with ``skip``
        return message

    async def receive_or_skip(self, largest: int) -> bytes | Oversized:
        """Return the next message; one of more than ``largest`` bytes is dropped, and the stream continues.

        Raises StreamEnded.
        """
        return await self._receive(largest, unpack=False, skip=True)

    async def _receive(self, largest: int, *, unpack: bool, skip: bool) -> bytes | Oversized:
        # grpclib's buffer raises AssertionError if the stream ends inside a message.
        with contextlib.suppress(AssertionError):
            head = await self._stream.recv_data(5)
            size = int.from_bytes(head[1:], "big")
            if head and ((head[0] and not unpack) or (size > largest and not skip)):
                raise StreamEnded(None, f"a message of {size} bytes, compressed or too large")
            if size > largest:
                return await self._skip(size)
            body = await self._stream.recv_data(size)
            if head and len(body) == size:
                return _unpacked(bytes(body), largest) if head[0] else bytes(body)
        raise self._ended()

    async def _skip(self, size: int) -> Oversized:
        start = end = b""
        remaining = size
        while remaining:
            part = bytes(await self._stream.recv_data(min(remaining, BURST)))
            if not part:
                raise self._ended()
            remaining -= len(part)
            start = start or part[:KEPT]
            end = (end + part[-KEPT:])[-KEPT:]
        return Oversized(size, start, end)

    async def send(self, message: bytes, *, last: bool = False, packed: bool = False, more: bytes = b"") -> None:
        """Send one message, as fast as the peer takes it, without blocking the loop. Raises StreamEnded.

        ``last``: the stream is half-closed after it. ``more`` are further bytes of the message, so that a large one
        need not be copied to append a few. ``packed``: it is compressed as in the header ``grpc-encoding``.

        If the stream breaks while the peer does not read, this keeps waiting: the reader gets the end.
        """
        data = memoryview(message)
        part = bytes(struct.pack(">?I", packed, len(data) + len(more))) + data[:SLICE]
        if len(data) <= SLICE:
            part += more
        start = SLICE
        while True:
            if self._broken or not self._stream.closable:
                raise self._ended()
            try:
                await self._stream.send_data(part, end_stream=last and start >= len(data))
            except H2Error:
                raise self._ended() from None
            if start >= len(data):
                return
            await asyncio.sleep(0)
            part = bytes(data[start : start + SLICE])
            start += SLICE
            if start >= len(data):
                part += more

    async def begin(self) -> None:
        """Server: send the headers. Raises StreamEnded."""
        await self._headers([(":status", "200"), ("content-type", "application/grpc+proto")], end=False)

    async def finish(self, status: int, text: str = "") -> None:
        """Server: end a stream that has begun."""
        trailers = [("grpc-status", str(status)), *([("grpc-message", quote(text, safe=" :/,'()"))] if text else [])]
        with contextlib.suppress(StreamEnded, TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await self._headers(trailers, end=True)
                self._finished = True

    def close(self) -> None:
        """Release the stream; reset it if it has not ended yet."""
        release, self._release = self._release, None
        if release is None:
            return
        with contextlib.suppress(H2Error):
            if self._stream.closable:
                # After its trailers a server may reset the stream without an error (RFC 9113, 8.1).
                self._stream.reset_nowait(ErrorCodes.NO_ERROR if self._finished else ErrorCodes.CANCEL)
        with contextlib.suppress(H2Error):
            release()

    async def _headers(self, headers: list[tuple[str, str]], *, end: bool) -> None:
        try:
            if self._broken or not self._stream.closable:
                raise self._ended()
            await self._stream.send_headers(headers, end_stream=end)
        except H2Error:
            raise self._ended() from None

    def _ended(self) -> StreamEnded:
        headers = dict(self._stream.trailers or self._stream.headers or ())
        if "grpc-status" in headers:
            code = headers["grpc-status"]
            return StreamEnded(
                int(code) if code.isdecimal() and len(code) < 4 else None, unquote(headers.get("grpc-message", ""))
            )
        if headers.get(":status", "200") != "200":
            return StreamEnded(None, f"HTTP status {headers[':status']}")
        return StreamEnded(None, self._broken or "the stream was ended")


def _unpacked(data: bytes, largest: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(data, largest)
    except zlib.error:
        raise StreamEnded(None, "a message that is not gzip, although it is marked as compressed") from None
    if not unpacker.eof:
        raise StreamEnded(None, "a compressed message, cut or too large")
    return unpacked


class FrameProtocol(H2Protocol):
    """grpclib's protocol, without its failures at unknown or late frames.

    uvloop reads up to 8 MB in one turn of the loop, 4 ms of work each: reading is paused after ``BURST`` bytes.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the protocol."""
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)
        self._burst = 0
        for event in (AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived):
            self.processor.processors[event] = lambda _: None

    def data_received(self, data: bytes) -> None:
        """Process received data; data that is not HTTP/2 closes the connection, and has no other effect."""
        if not self._burst:
            asyncio.get_running_loop().call_soon(self._next_burst)
        self._burst += len(data)
        if self._burst > BURST:
            self._transport.pause_reading()
        try:
            super().data_received(data)
        except Exception as error:
            self.processor.close(f"HTTP/2 failed: {type(error).__name__}")

    def _next_burst(self) -> None:
        paused, self._burst = self._burst > BURST, 0
        if paused and not self._transport.is_closing():
            self._transport.resume_reading()


def configure(*, client: bool) -> H2Configuration:
    """Return a configuration of HTTP/2 without costly checks of headers, which are ours or not read."""
    return H2Configuration(
        client_side=client,
        header_encoding="ascii",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )
