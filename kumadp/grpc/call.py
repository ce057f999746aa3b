"""gRPC streams of raw messages, both sides, over grpclib's HTTP/2: no codec, no protobuf runtime.

grpclib's own client and server are not used: theirs is the half that encodes messages, logs tracebacks when a peer goes
and cancels tasks from within. A `Call` is one stream; that it ends is the one exception `StreamEnded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote

from grpclib.protocol import H2Protocol
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived
from h2.exceptions import H2Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpclib.protocol import Stream

# hpack logs every header that it encodes, the token's too, and grpclib what a peer does with its streams.
for _name in ("hpack", "grpclib"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# Status codes of gRPC (grpc/doc/statuscodes.md) that are told apart here.
OK, UNIMPLEMENTED, UNAVAILABLE = 0, 12, 14
# What is sent in one go, in bytes, before the loop may do something else. Four frames: from the fifth write to a peer
# that has gone, asyncio logs a warning each.
SLICE = 64 << 10
# What is taken in one turn of the loop, in bytes.
BURST = 256 << 10
LARGEST = 256 << 20
# Bytes of each end of a message that was too large.
KEPT = 16 << 10
# How long a TLS peer may take to confirm the end; a dead one never does.
SHUTDOWN_SECONDS = 1.0


class StreamEnded(Exception):
    """A stream is over. ``status`` is its gRPC code, None where stream or connection broke; the text says why."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Oversized:
    """A message that was too large, and was read and dropped: its size in bytes, its first and last ``KEPT``."""

    size: int
    head: bytes = field(repr=False)
    tail: bytes = field(repr=False)


class _Break(Wrapper):
    """Stands where grpclib would cancel the tasks of a stream that is reset, or whose connection is lost."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = broken

    def cancel(self, error: Exception) -> None:
        self._tell(str(error))


class Call:
    """One bidirectional stream of messages. One task reads, one writes; who owns both stops the writer at the end."""

    def __init__(self, stream: Stream, release: Callable[[], None]) -> None:
        self._stream = stream
        self._release: Callable[[], None] | None = release
        self._broken = ""
        self._finished = False
        stream.wrapper = _Break(self._on_break)

    def _on_break(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._stream.buffer.eof()

    async def receive(self, *, unpack: bool = False, largest: int = LARGEST) -> bytes:
        """The next message, of at most ``largest`` bytes; one that is packed with gzip only where ``unpack`` says so.

        Raises StreamEnded.
        """
        message = await self._receive(largest, unpack=unpack, skip=False)
        assert isinstance(message, bytes)  # noqa: S101 - only with ``skip`` it is something else
        return message

    async def receive_or_skip(self, largest: int) -> bytes | Oversized:
        """The next message; one of more than ``largest`` bytes is read and dropped, and the stream goes on.

        Raises StreamEnded.
        """
        return await self._receive(largest, unpack=False, skip=True)

    async def _receive(self, largest: int, *, unpack: bool, skip: bool) -> bytes | Oversized:
        # AssertionError is how grpclib's buffer says that the stream ended inside a message.
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
        left = size
        while left:
            part = bytes(await self._stream.recv_data(min(left, BURST)))
            if not part:
                raise self._ended()
            left -= len(part)
            start = start or part[:KEPT]
            end = (end + part[-KEPT:])[-KEPT:]
        return Oversized(size, start, end)

    async def send(self, message: bytes, *, last: bool = False, packed: bool = False, more: bytes = b"") -> None:
        """Send one message, the ``last`` one or not, as fast as the peer takes it, without holding the loop.

        ``more`` are further bytes of it, so that a large message need not be copied for a few at its end.

        ``packed``: it is compressed as the header ``grpc-encoding`` says. Raises StreamEnded.

        Where the stream breaks while the peer does not read, this waits on: the reader learns of the end.
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
        """Give the stream back; one that is not over yet is reset."""
        release, self._release = self._release, None
        if release is None:
            return
        with contextlib.suppress(H2Error):
            if self._stream.closable:
                # After its trailers a server has nothing against what the client sends (RFC 9113, 8.1).
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
        found = unpacker.decompress(data, largest)
    except zlib.error:
        raise StreamEnded(None, "a message that is no gzip, although it is packed") from None
    if not unpacker.eof:
        raise StreamEnded(None, "a packed message, cut or too large")
    return found


class FrameProtocol(H2Protocol):
    """grpclib's protocol, which must not fail at frames that it does not know or that come late.

    uvloop reads up to 8 MB in one turn of the loop, 4 ms of work each: after ``BURST`` bytes it is told to pause.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)
        self._burst = 0
        for event in (AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived):
            self.processor.processors[event] = lambda _: None

    def data_received(self, data: bytes) -> None:
        """Take what a peer sends; what is no HTTP/2 ends its connection, and no more."""
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
    """HTTP/2 without checks that cost time on headers that are ours or are not looked at."""
    return H2Configuration(
        client_side=client,
        header_encoding="ascii",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )
