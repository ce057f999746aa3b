"""gRPC streams of raw messages, both sides, over grpclib's HTTP/2: no codec, no protobuf runtime.

grpclib's own client and server are not used: theirs is the half that encodes messages, logs tracebacks when a peer goes
and cancels tasks from within. A `Call` is one stream; that it ends is the one exception `Ended`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, unquote

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, H2Protocol
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived
from h2.exceptions import H2Error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from grpclib.protocol import Connection, EventsProcessor, Stream

# hpack logs every header that it encodes, the token's too, and grpclib what a peer does with its streams.
for _name in ("hpack", "grpclib"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# Status codes of gRPC (grpc/doc/statuscodes.md) that are told apart here.
OK, UNIMPLEMENTED, UNAVAILABLE = 0, 12, 14
# What is sent in one go, in bytes, before the loop may do something else: about 0.5 ms of work.
SLICE = 128 << 10
# What is taken in one turn of the loop, in bytes.
BURST = 256 << 10
LARGEST = 256 << 20
WINDOW = 16 << 20
CONNECT_SECONDS = 5.0
# How long a TLS peer may take to confirm the end; a dead one never does.
SHUTDOWN_SECONDS = 1.0
# How long sent bytes may stay unacknowledged before the kernel gives the connection up.
UNACKNOWLEDGED_SECONDS = 30.0


class Ended(Exception):
    """A stream is over. ``status`` is its gRPC code, None where stream or connection broke; the text says why."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


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

    async def receive(self) -> bytes:
        """The next message. Raises Ended."""
        # AssertionError is how grpclib's buffer says that the stream ended inside a message.
        with contextlib.suppress(AssertionError):
            head = await self._stream.recv_data(5)
            size = int.from_bytes(head[1:], "big")
            if head and (head[0] or size > LARGEST):
                raise Ended(None, f"a message of {size} bytes, compressed or too large")
            body = await self._stream.recv_data(size)
            if head and len(body) == size:
                return bytes(body)
        raise self._ended()

    async def send(self, message: bytes) -> None:
        """Send one message, as fast as the peer takes it, without holding the loop. Raises Ended.

        Where the stream breaks while the peer does not read, this waits on: the reader learns of the end.
        """
        data = memoryview(message)
        part = bytes(struct.pack(">?I", False, len(data))) + data[:SLICE]
        start = SLICE
        while True:
            if self._broken or not self._stream.closable:
                raise self._ended()
            try:
                await self._stream.send_data(part)
            except H2Error:
                raise self._ended() from None
            if start >= len(data):
                return
            await asyncio.sleep(0)
            part = bytes(data[start : start + SLICE])
            start += SLICE

    async def begin(self) -> None:
        """Server: send the headers. Raises Ended."""
        await self._headers([(":status", "200"), ("content-type", "application/grpc+proto")], end=False)

    async def finish(self, status: int, text: str = "") -> None:
        """Server: end a stream that has begun."""
        trailers = [("grpc-status", str(status)), *([("grpc-message", quote(text, safe=" :/,'()"))] if text else [])]
        with contextlib.suppress(Ended, TimeoutError):
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

    def _ended(self) -> Ended:
        headers = dict(self._stream.trailers or self._stream.headers or ())
        if "grpc-status" in headers:
            code = headers["grpc-status"]
            return Ended(int(code) if code.isdigit() else None, unquote(headers.get("grpc-message", "")))
        if headers.get(":status", "200") != "200":
            return Ended(None, f"HTTP status {headers[':status']}")
        return Ended(None, self._broken or "the stream was ended")


class Wire:
    """A client's HTTP/2 connection."""

    def __init__(self, protocol: _ClientProtocol, authority: str, scheme: str) -> None:
        self._protocol = protocol
        self._authority = authority
        self._scheme = scheme

    async def call(self, path: str, metadata: Mapping[str, str]) -> Call:
        """Open a stream. Raises Ended where the connection is gone."""
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-python-kumadp"),
            *metadata.items(),
        ]
        connection: Connection = self._protocol.connection
        if connection.is_closing():
            raise Ended(None, "the connection is closed")
        stream = connection.create_stream()
        try:
            release = await stream.send_request(headers, _processor=self._protocol.processor)
        except H2Error as error:
            raise Ended(None, f"no stream could be opened: {type(error).__name__}") from None
        return Call(stream, release)

    async def close(self) -> None:
        """End all streams and the connection so that the server sees it at once: RST_STREAM, GOAWAY, then TCP's end."""
        connection: Connection = self._protocol.connection
        if not connection.is_closing():
            with contextlib.suppress(H2Error):
                connection._connection.close_connection()  # noqa: SLF001 - grpclib offers no GOAWAY
            connection.flush()
        self._protocol.processor.close("closed by us")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await self._protocol.handler.lost.wait()


class _Calling(AbstractHandler):
    """The client's side of a connection: nobody calls us."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def accept(self, stream: Stream, headers: object, release_stream: Callable[[], None]) -> None:  # noqa: ARG002
        release_stream()

    def cancel(self, stream: Stream) -> None:
        """The call hears of it itself."""

    def close(self) -> None:
        """The calls hear of it themselves."""


class _Protocol(H2Protocol):
    """grpclib's protocol, which must not fail at frames that it does not know or that come late.

    uvloop reads up to 8 MB in one turn of the loop, 4 ms of work each: after ``BURST`` bytes it is told to pause.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport = cast("asyncio.Transport", transport)
        self._burst = 0
        for event in (AlternativeServiceAvailable, InformationalResponseReceived, UnknownFrameReceived):
            self.processor.processors[event] = lambda _: None

    def data_received(self, data: bytes) -> None:
        if not self._burst:
            asyncio.get_running_loop().call_soon(self._next_burst)
        self._burst += len(data)
        if self._burst > BURST:
            self._transport.pause_reading()
        try:
            super().data_received(data)
        # Whatever a peer sends ends its connection, and no more.
        except Exception as error:
            self.processor.close(f"HTTP/2 failed: {type(error).__name__}")

    def _next_burst(self) -> None:
        paused, self._burst = self._burst > BURST, 0
        if paused and not self._transport.is_closing():
            self._transport.resume_reading()


class _ClientProtocol(_Protocol):
    handler: _Calling

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.handler.lost.set()


async def connect(
    address: tuple[str, int], *, authority: str, tls: ssl.SSLContext | None, server_name: str, ping: tuple[float, float]
) -> Wire:
    """A connection to a numeric address, pinged every ``ping[0]`` seconds, closed without an answer in ``ping[1]``.

    Raises OSError (TimeoutError and ssl.SSLError are).
    """
    # At least 15 s lie between two pings in Kuma, or it closes the connection (2.8 to 2.13).
    config = Configuration(
        _keepalive_time=ping[0],
        _keepalive_timeout=ping[1],
        _http2_max_pings_without_data=0,
        _http2_min_sent_ping_interval_without_data=ping[0] * 0.9,
        http2_connection_window_size=WINDOW,
        http2_stream_window_size=WINDOW,
    ).__for_client__()
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_SECONDS * 1000))
        async with asyncio.timeout(CONNECT_SECONDS):
            await loop.sock_connect(sock, address)
            if tls is not None:
                tls.set_alpn_protocols(["h2"])
            _, protocol = await loop.create_connection(
                lambda: _ClientProtocol(_Calling(), config, _h2(client=True)),
                sock=sock,
                ssl=tls,
                server_hostname=server_name if tls is not None else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls is not None else None,
            )
    except BaseException:
        sock.close()
        raise
    return Wire(protocol, authority, "http" if tls is None else "https")


class Server:
    """Serves raw streams on a Unix socket to processes of our own user, or root; others are turned away."""

    def __init__(self, handlers: Mapping[str, Callable[[Call, int], Awaitable[None]]], allowed: Callable[[int], bool]):
        """``handlers``: by path, each given the call and the peer's pid; ``allowed`` is asked with the peer's uid."""
        self._handlers = handlers
        self._allowed = allowed
        self._protocols: set[_ServerProtocol] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Nothing is pinged: Envoy's main thread may be busy for a minute with a large update.
        self._config = Configuration(_keepalive_time=None).__for_server__()

    async def start(self, sock: socket.socket) -> asyncio.AbstractServer:
        """Accept connections."""
        return await asyncio.get_running_loop().create_unix_server(self._protocol, sock=sock)

    async def close(self) -> None:
        """End all streams and connections."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SHUTDOWN_SECONDS)
        for protocol in tuple(self._protocols):
            protocol.processor.close("closed by us")

    def _protocol(self) -> _ServerProtocol:
        return _ServerProtocol(self, self._config)

    def admit(self, protocol: _ServerProtocol, uid: int) -> bool:
        """Whether a peer may speak."""
        if allowed := self._allowed(uid):
            self._protocols.add(protocol)
        return allowed

    def forget(self, protocol: _ServerProtocol) -> None:
        """A connection is lost."""
        self._protocols.discard(protocol)

    def accept(self, call: Call, path: str, pid: int) -> None:
        """Serve a stream that a peer opened."""
        task = asyncio.get_running_loop().create_task(self._serve(call, path, pid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: Call, path: str, pid: int) -> None:
        handler = self._handlers.get(path)
        try:
            await call.begin()
            if handler is None:
                await call.finish(UNIMPLEMENTED, "no such method")
            else:
                await handler(call, pid)
        except Ended:
            pass
        finally:
            call.close()


class _Accepting(AbstractHandler):
    def __init__(self, server: Server) -> None:
        self._server = server
        self.pid = 0

    def accept(self, stream: Stream, headers: list[tuple[str, str]], release_stream: Callable[[], None]) -> None:
        self._server.accept(Call(stream, release_stream), dict(headers).get(":path", ""), self.pid)

    def cancel(self, stream: Stream) -> None:
        """The call hears of it itself."""

    def close(self) -> None:
        """The calls hear of it themselves."""


class _ServerProtocol(_Protocol):
    handler: _Accepting
    processor: EventsProcessor

    def __init__(self, server: Server, config: Configuration) -> None:
        super().__init__(_Accepting(server), config, _h2(client=False))
        self._server = server
        self._admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        self.handler.pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._admitted = self._server.admit(self, uid)
        if self._admitted:
            super().connection_made(transport)
        else:
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._admitted:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._admitted:
            super().connection_lost(exc)
            self._server.forget(self)


def _h2(*, client: bool) -> H2Configuration:
    return H2Configuration(
        client_side=client,
        header_encoding="ascii",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )
