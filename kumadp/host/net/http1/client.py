"""One HTTP/1.1 request on a new connection, and the response to it, bounded in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, NamedTuple, cast

from kumadp.host.net.http1.bodies import BodyDecoder
from kumadp.host.net.http1.heads import MalformedMessage, ResponseHead, parse_response_head

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterable

MAX_HEAD = 1 << 20
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_RECEIVE_SIZE = 1 << 16
# Bytes before unscanned ones with which an end of a head may begin.
_OVERLAP = 3


class UpstreamResponse(NamedTuple):
    """A response, with at most so many bytes of its body as were wanted."""

    head: ResponseHead
    body: bytes


def encode_request(method: str, target: str, fields: Iterable[tuple[str, str]], body: bytes | None = None) -> bytes:
    """Return a request's bytes; the texts are Latin-1, and free of control characters.

    A body, an empty one too, has its length stated; None: no body. Connection: close is added.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines.append("Connection: close")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (body or b"")


async def exchange(
    sock: socket.socket,
    request: bytes,
    *,
    max_body: int,
    to_head: bool = False,
    tls: ssl.SSLContext | None = None,
    server: str = "",
) -> UpstreamResponse:
    """Send a request over a connected socket, which is closed then, and return the response. No deadline.

    Of the body at most ``max_body`` bytes are read. ``server``: the name for TLS. Raises OSError, and MalformedMessage,
    also for a response that ends too early.
    """
    loop = asyncio.get_running_loop()
    reader = ResponseReader(max_body, to_head=to_head)
    try:
        if tls is not None:
            return await _exchange_by_tls(sock, request, reader, tls, server)
        # A transport would cost more than the whole exchange.
        with contextlib.suppress(BlockingIOError):
            request = request[sock.send(request) :]
        if request:
            await loop.sock_sendall(sock, request)
        while (response := reader.feed(await loop.sock_recv(sock, _RECEIVE_SIZE))) is None:
            pass
        return response
    finally:
        sock.close()


async def _exchange_by_tls(
    sock: socket.socket, request: bytes, reader: ResponseReader, tls: ssl.SSLContext, server: str
) -> UpstreamResponse:
    loop = asyncio.get_running_loop()
    protocol = _TlsExchange(loop, request, reader)
    try:
        await loop.create_connection(lambda: protocol, sock=sock, ssl=tls, server_hostname=server)
        return await protocol.response
    finally:
        protocol.close()


# Before the head is there.
_NO_BODY = BodyDecoder(0, chunked=False, keep=0)


class ResponseReader:
    """Takes a response in pieces. ``max_body``: bytes of the body that are wanted."""

    __slots__ = ("_body", "_buffer", "_head", "_head_bytes", "_max_body", "_scanned", "_to_head")

    def __init__(self, max_body: int, *, to_head: bool) -> None:
        self._max_body = max_body
        self._to_head = to_head
        self._buffer = bytearray()
        self._scanned = 0
        self._head_bytes = 0
        self._head: ResponseHead | None = None
        self._body = _NO_BODY

    def feed(self, data: bytes) -> UpstreamResponse | None:
        """Take received bytes, none at the connection's end; returns the response when it is there.

        Raises MalformedMessage.
        """
        if self._head is not None:
            if data:
                self._body.feed(data)
        elif data:
            self._buffer += data
            self._take_heads()
        if self._head is not None and (self._body.complete or self._body.received >= self._max_body):
            return UpstreamResponse(self._head, bytes(self._body.content))
        if data:
            return None
        if self._head is not None and self._body.until_end:
            return UpstreamResponse(self._head, bytes(self._body.content))
        raise MalformedMessage("a response that is not complete")

    def _take_heads(self) -> None:
        """Parse the head of the response, after those of interim responses."""
        while self._head is None:
            end = _HEAD_END.search(self._buffer, max(0, self._scanned - _OVERLAP))
            size = self._head_bytes + (end.start() if end is not None else len(self._buffer))
            if size > MAX_HEAD:
                raise MalformedMessage(f"heads of more than {MAX_HEAD} bytes")
            if end is None:
                self._scanned = len(self._buffer)
                return
            head = parse_response_head(bytes(self._buffer[: end.start()]), has_body=not self._to_head)
            del self._buffer[: end.end()]
            self._scanned, self._head_bytes = 0, size
            if head.status == 101:
                raise MalformedMessage("a switch of protocols that was not requested")
            if head.status >= 200:
                self._head = head
                self._body = BodyDecoder(head.length, chunked=head.chunked, keep=self._max_body)
        if self._buffer:
            self._body.feed(bytes(self._buffer))
            self._buffer.clear()


class _TlsExchange(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes, reader: ResponseReader) -> None:
        self.response: asyncio.Future[UpstreamResponse] = loop.create_future()
        self._request = request
        self._reader = reader
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        """End the connection at once; nothing more is to be sent."""
        if not self.response.cancel() and not self.response.cancelled():
            # Whoever waited may have been cancelled: then the failure is nobody's.
            self.response.exception()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take received bytes."""
        self._feed(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End a body that ends with the connection."""
        if exc is None:
            self._feed(b"")
        elif not self.response.done():
            self.response.set_exception(exc)

    def _feed(self, data: bytes) -> None:
        if self.response.done():
            return
        try:
            response = self._reader.feed(data)
        except MalformedMessage as error:
            self.response.set_exception(error)
            return
        if response is not None:
            self.response.set_result(response)
