"""Server of HTTP/1.1 for requests that are answered in one piece, with limits on how long a client may take.

It serves what `kumadp.host.net.http_server` serves with aiohttp, by the same limits, at a fraction of the cost.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, cast

from msgspec import Struct, field

from kumadp.host.net.client_slots import client_of
from kumadp.host.net.http1.bodies import BodyDecoder
from kumadp.host.net.http1.heads import MalformedMessage, RequestHead, parse_request_head
from kumadp.host.net.http1.messages import PLAIN_TEXT, ServedRequest, WholeResponse
from kumadp.host.net.time_limits import LINGERING, TimeLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.host.net.connection_limit import ConnectionLimit

    RequestHandler = Callable[[ServedRequest], Awaitable[WholeResponse]]

log = logging.getLogger("kumadp.http")

MAX_HEAD = 32 * 1024
# After a stall of the loop, uvloop runs timers before it reads what arrived during it.
TURNS_TO_READ = 3
# What a client may send ahead while its request is answered; then it must wait.
_MAX_AHEAD = 64 * 1024
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST = WholeResponse(400, b"400 Bad Request\n", PLAIN_TEXT, close=True)
_FAILED = WholeResponse(500, b"500 Internal Server Error\n", PLAIN_TEXT, close=True)


class Http1Connection(asyncio.Protocol):
    """One client's connection, a `kumadp.host.net.connection_limit.LimitedConnection`.

    ``ended`` is called when it is over. One request is answered at a time; later ones wait in the buffer.
    """

    def __init__(self, server: Http1Server, ended: Callable[[], None]) -> None:
        self._server = server
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        # Bytes of the buffer that hold no end of a head.
        self._scanned = 0
        self._request: ServedRequest | None = None
        self.task: asyncio.Task[None] | None = None
        """Runs the handler."""
        # Set with each piece of a body, while the handler reads it.
        self._arrival: asyncio.Future[None] | None = None
        # For the head, the body or the next request, whichever the client owes.
        self._timer: asyncio.Handle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._reading_paused = False
        self._displaced = False
        # The timer is that of a head.
        self._head_timed = True
        # What else the client sends is ignored, and the connection closed after the response.
        self._ending = False
        self._body_error: MalformedMessage | None = None
        self._draining = False

    def may_be_displaced(self) -> bool:
        """Return whether it is idle, has not sent its whole request, or does not read its response."""
        request = self._request
        if request is None or self._write is not None:
            return True
        return request.body is not None and not request.body.complete

    def displace(self) -> None:
        """Abort it."""
        self._displaced = True
        self._abort()

    def drain(self) -> None:
        """Close it after the response under way, or now if there is none."""
        self._draining = True
        if self.task is None:
            self._close()

    def end(self) -> None:
        """End it: at once if a handler still runs, else when what was written has been sent."""
        if self.task is not None:
            self.task.cancel()
            self._abort()
        else:
            self._close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.add(self)
        self._set_timer(self._server.limits.head, self._close)
        if self._displaced:
            self._abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers and report the end."""
        del exc
        self._transport = None
        self._set_timer(None)
        if self._write is not None:
            self._write.cancel()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(ConnectionResetError("the client has disconnected"))
        if self.task is not None and self._server.abandon:
            self.task.cancel()
        self._ended()
        self._server.remove(self)

    def data_received(self, data: bytes) -> None:
        """Take received bytes: of a body under way, or of requests."""
        if self._ending:
            return
        body = self._request.body if self._request is not None else None
        if body is not None and not body.complete:
            try:
                data = body.feed(data)
            except MalformedMessage as error:
                self._on_malformed_body(error)
                if self.task is None:
                    # It was answered already.
                    self._close()
                return
            self._on_arrival(body)
            if body.received > self._server.max_body + _MAX_AHEAD:
                self._pause_reading()
        if not data:
            return
        self._buffer += data
        if self._request is None:
            self._next()
        elif len(self._buffer) > _MAX_AHEAD:
            self._pause_reading()

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its response."""
        self._write = self._write or self._loop.call_later(self._server.limits.write, self._abort)

    def resume_writing(self) -> None:
        """Stop that timer."""
        if self._write is not None:
            self._write.cancel()
            self._write = None

    def _next(self) -> None:
        """Take the next request from the buffer, if its head is there."""
        buffer = self._buffer
        if self._scanned == 0 and buffer.startswith(b"\r\n"):
            # Some clients end a body with an empty line (RFC 9112, 2.2).
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), MAX_HEAD + 4)
        if end < 0:
            self._wait_for_head()
            return
        self._scanned = 0
        try:
            head = parse_request_head(bytes(buffer[:end]))
        except MalformedMessage as error:
            self._reject(str(error))
            return
        del buffer[: end + 4]
        self._begin(head)

    def _wait_for_head(self) -> None:
        buffer = self._buffer
        if len(buffer) > MAX_HEAD:
            self._reject(f"a head of more than {MAX_HEAD} bytes")
            return
        if _BARE_LF.search(buffer, max(0, self._scanned - 1)):
            self._reject("a line that does not end in CRLF")
            return
        self._scanned = len(buffer)
        if buffer and not self._head_timed:
            self._head_timed = True
            self._set_timer(self._server.limits.head, self._close)

    def _begin(self, head: RequestHead) -> None:
        self._set_timer(None)
        self._server.on_first_request(self)
        body: BodyDecoder | None = None
        if head.length != 0:
            body = BodyDecoder(head.length, chunked=head.length is None, keep=self._server.max_body)
        self._request = ServedRequest(head, body, self._read_body)
        if body is not None:
            data, self._buffer = bytes(self._buffer), bytearray()
            try:
                self._buffer += body.feed(data)
            except MalformedMessage as error:
                self._on_malformed_body(error)
            if not body.complete:
                self._set_timer(self._server.limits.body, self._close)
        self.task = self._loop.create_task(self._respond(self._request))

    async def _respond(self, request: ServedRequest) -> None:
        try:
            response = await self._server.answer(request)
        except MalformedMessage:
            response = _BAD_REQUEST
        except Exception:
            if self._transport is not None:
                log.exception("a request could not be answered")
            response = _FAILED
        self.task = None
        self._send(request, response)

    def _send(self, request: ServedRequest, response: WholeResponse) -> None:
        transport, head, body = self._transport, request.head, request.body
        if transport is None or transport.is_closing():
            return
        keep = head.keep_alive and not (response.close or self._draining or self._ending)
        transport.write(response.encode(head.minor, keep_alive=keep, to_head=head.method == "HEAD"))
        if body is not None and not body.complete and keep:
            # The rest of the body is received, but not for long.
            self._resume_reading()
            self._set_timer(LINGERING, self._close)
        elif keep:
            self._on_answered()
        elif self._buffer or (body is not None and not body.complete):
            self._linger()
        else:
            self._close()

    def _on_answered(self) -> None:
        """Wait for the next request, or take it from the buffer."""
        self._request = None
        self._resume_reading()
        self._head_timed = False
        self._set_timer(self._server.limits.idle, self._close)
        if self._buffer:
            self._next()

    def _on_arrival(self, body: BodyDecoder) -> None:
        if body.complete:
            if self.task is None:
                self._on_answered()
            else:
                self._set_timer(None)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def _read_body(self, limit: int) -> None:
        """Return when the body is complete, or longer than ``limit``. Raises MalformedMessage, ConnectionError."""
        request = self._request
        assert request is not None  # noqa: S101
        body = request.body
        assert body is not None  # noqa: S101
        if not body.complete and not body.received and self._transport is not None:
            expected = request.head.fields.get("expect").lower()
            if expected == "100-continue" and request.head.minor:
                self._transport.write(_CONTINUE)
        while not body.complete and body.received < limit:
            if self._body_error is not None:
                raise self._body_error
            if self._transport is None:
                raise ConnectionResetError("the client has disconnected")
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None

    def _on_malformed_body(self, error: MalformedMessage) -> None:
        """Let a handler that reads the body fail; one that does not may answer before the connection is closed."""
        self._server.limit.count_bad_request(self._peer, f"its body: {error}")
        self._ending = True
        self._body_error = error
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(error)

    def _reject(self, reason: str) -> None:
        """Answer a request that could not be parsed."""
        self._server.limit.count_bad_request(self._peer, reason)
        self._server.on_first_request(self)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_BAD_REQUEST.encode(1, keep_alive=False, to_head=False))
            self._linger()

    def _linger(self) -> None:
        """Close after a while: unread data at the time of a close would reset the connection (RFC 9112, 9.6)."""
        self._ending = True
        self._buffer.clear()
        self._resume_reading()
        self._set_timer(LINGERING, self._close)
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    @property
    def _peer(self) -> str:
        """The client's address for log lines; empty on a Unix socket."""
        return client_of(self._transport.get_extra_info("peername"))[0] if self._transport is not None else ""

    def _set_timer(self, seconds: float | None, callback: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and callback is not None and self._transport is not None:
            self._timer = self._loop.call_later(seconds, self._on_time_over, callback, TURNS_TO_READ)

    def _on_time_over(self, callback: Callable[[], None], turns: int) -> None:
        """Call ``callback`` after some turns of the loop, unless they read what the timer waits for."""
        if turns:
            self._timer = self._loop.call_soon(self._on_time_over, callback, turns - 1)
        else:
            self._timer = None
            callback()

    def _close(self) -> None:
        self._ending = True
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        self._ending = True
        if self._transport is not None:
            self._transport.abort()


class ServerOptions(Struct, frozen=True):
    """``abandon``: cancel a handler whose client has disconnected. ``max_body``: bytes of a body that are kept.

    ``shutdown``: how long requests under way may take when the server ends (seconds).
    """

    limits: TimeLimits = field(default_factory=TimeLimits)
    abandon: bool = False
    max_body: int = 0
    shutdown: float = 1.0


class Http1Server:
    """Creates connections. Calls ``on_connect`` for each, ``on_first_request`` at its first request or at its end."""

    def __init__(
        self,
        handler: RequestHandler,
        on_connect: Callable[[object], None],
        on_first_request: Callable[[object], None],
        limit: ConnectionLimit,
        options: ServerOptions,
    ) -> None:
        self.answer = handler
        self.on_first_request = on_first_request
        self.limit = limit
        self.limits = options.limits
        self.abandon = options.abandon
        self.max_body = options.max_body
        self._shutdown = options.shutdown
        self._on_connect = on_connect
        self._connections: set[Http1Connection] = set()

    def connection(self, ended: Callable[[], None]) -> Http1Connection:
        """Return a new connection, which calls ``ended`` when it is over."""
        return Http1Connection(self, ended)

    def add(self, connection: Http1Connection) -> None:
        """Note a connection."""
        self._connections.add(connection)
        self._on_connect(connection)

    def remove(self, connection: Http1Connection) -> None:
        """Note the end of a connection."""
        self._connections.discard(connection)
        self.on_first_request(connection)

    async def shut_down(self) -> None:
        """Close all connections, those with a request under way after their response, if it is there in time."""
        for connection in list(self._connections):
            connection.drain()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._shutdown)
        for connection in list(self._connections):
            connection.end()
