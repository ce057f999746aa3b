"""One port for HTTP/1.1 and gRPC, with TLS or plain, that can be gone and come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, cast

from tests.support.http2 import GOAWAY, frame
from tests.support.scripted_control_plane import Answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from grpclib.protocol import H2Protocol

    Headers = dict[str, str]
    Http = Callable[[str, Headers, bytes], Answer]

_PREFACE = b"PRI * HTTP/2.0\r\n"
_HIGHEST_STREAM = 2**31 - 1


class Front:
    """Accepts connections on ``port``; must be made and used on its loop, except for its counters.

    ``http`` answers HTTP/1.1 requests (path, headers, body), ``grpc`` makes the protocol of an HTTP/2 connection; a
    connection of a kind that has no server here is closed.
    """

    def __init__(
        self, host: str, context: ssl.SSLContext | None, http: Http | None, grpc: Callable[[], H2Protocol] | None
    ) -> None:
        self.http, self.grpc = http, grpc
        self.deaf = False
        self.accepted = 0
        self.connections: set[Connection] = set()
        self._context = context
        self._held: list[socket.socket] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._socket = self._bind((host, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._accepting: asyncio.Task[None] | None = None
        self.back()

    @property
    def port(self) -> int:
        return self.address[1]

    @staticmethod
    def _bind(address: tuple[str, int]) -> socket.socket:
        bound = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
        return bound

    def back(self) -> None:
        """Listen."""
        if self._accepting is None:
            self._socket.listen(100)
            self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def gone(self) -> None:
        """Refuse connections, break those there are; the port stays ours."""
        if self._accepting is None:
            return
        self._accepting.cancel()
        self._accepting = None
        self._socket.close()
        # Bound and not listening: connections are refused, and nobody else gets the port.
        self._socket = self._bind(self.address)
        self.drop()

    def drop(self, *, reset: bool = False) -> None:
        """Break all connections: with a TCP RST, or as a process that is killed does."""
        self.drop_held()
        for task in self._starting:
            task.cancel()
        for connection in list(self.connections):
            connection.drop(reset=reset)

    def drop_held(self) -> None:
        """Break the connections from which nothing was read."""
        for held in self._held:
            held.close()
        self._held.clear()

    def close(self) -> None:
        """Stop permanently."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._socket.close()
        self.drop()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _peer = await loop.sock_accept(self._socket)
            self.accepted += 1
            if self.deaf:
                self._held.append(accepted)
                continue
            # A handshake that is slow or fails must hold nobody up.
            task = loop.create_task(self._start(accepted))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: Connection(self), accepted, ssl=self._context)
        except OSError:
            accepted.close()


class Connection(asyncio.Protocol):
    """A connection: HTTP/2 from its preface on, else HTTP/1.1 with one request after the other."""

    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front
        self._buffer = b""
        self._inner: H2Protocol | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._front.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)
            return
        self._buffer += data
        if len(self._buffer) < len(_PREFACE):
            return
        if self._buffer.startswith(_PREFACE):
            self._speak_http2()
        else:
            self._speak_http1()

    def _speak_http2(self) -> None:
        if self._front.grpc is None:
            self.transport.close()
            return
        self._inner = self._front.grpc()
        self._inner.connection_made(self.transport)
        self._inner.data_received(self._buffer)

    def _speak_http1(self) -> None:
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            path = first.split(" ")[1]
            answer = self._front.http(path, headers, rest[:length]) if self._front.http else Answer(404)
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        if answer.hang:
            return
        if answer.reset:
            self.drop(reset=True)
            return
        headers = {"content-length": str(len(answer.body)), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} answered", *(f"{name}: {text}" for name, text in headers.items())]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self._send(answer.body, answer.drip)

    def _send(self, body: bytes, drip: float) -> None:
        if not drip or not body:
            self.transport.write(body)
        elif not self.transport.is_closing():
            self.transport.write(body[:1])
            asyncio.get_running_loop().call_later(drip, self._send, body[1:], drip)

    def write_raw(self, data: bytes) -> None:
        """Bytes past all framing."""
        self.transport.write(data)

    def goaway(self) -> None:
        """Send GOAWAY, as a server does that stops gracefully; open streams continue."""
        if self._inner is not None:
            self.transport.write(frame(GOAWAY, 0, 0, struct.pack(">II", _HIGHEST_STREAM, 0)))

    def drop(self, *, reset: bool) -> None:
        """Break it."""
        if reset and (raw := self.transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._front.connections.discard(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)
