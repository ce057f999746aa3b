"""aiohttp's server with limits on how long a client may take, and without a Server header.

aiohttp takes 130 ms to import: `kumadp.host.net.serve` imports this module in a thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kumadp.host.net.client_slots import client_of
from kumadp.host.net.time_limits import LINGERING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader

    from kumadp.host.net.connection_limit import ConnectionLimit
    from kumadp.host.net.time_limits import TimeLimits

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = logging.getLogger("kumadp.http")


class HttpConnection(web.RequestHandler):
    """One client's connection, a `kumadp.host.net.connection_limit.LimitedConnection`.

    ``ended`` is called when it is over.
    """

    __slots__ = ("_answering", "_body", "_displaced", "_ended", "_head", "_limits", "_server", "_write")

    def __init__(
        self, server: HttpServer, limits: TimeLimits, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None: no access log
            logger=log,
            lingering_time=LINGERING,
            keepalive_timeout=limits.idle,
            # A body is passed on as received.
            auto_decompress=False,
        )
        self._server = server
        self._limits = limits
        self._ended = ended
        self._head: asyncio.TimerHandle | None = None
        self._body: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._answering: web.BaseRequest | None = None
        self._displaced = False

    @property
    def peer(self) -> str:
        """The client's address for log lines; empty on a Unix socket."""
        return client_of(self.transport.get_extra_info("peername"))[0] if self.transport is not None else ""

    def may_be_displaced(self) -> bool:
        """Return whether it is idle, has not sent its whole request, or does not read its response."""
        request = self._answering
        return request is None or self._write is not None or not request.content.is_eof()

    def displace(self) -> None:
        """Abort it."""
        self._displaced = True
        self._abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._head = self._loop.call_later(self._limits.head, self.force_close)
        if self._displaced:
            self._abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers and report the end."""
        self._head = _cancel(self._head)
        self._body = _cancel(self._body)
        self._write = _cancel(self._write)
        self._ended()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received data; a head that has begun must end in time."""
        if self._head is None and self._answering is None:
            self._head = self._loop.call_later(self._limits.head, self.force_close)
        super().data_received(data)

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its response."""
        super().pause_writing()
        self._write = self._write or self._loop.call_later(self._limits.write, self._abort)

    def resume_writing(self) -> None:
        """Stop that timer."""
        super().resume_writing()
        self._write = _cancel(self._write)

    def begin(self, request: web.BaseRequest) -> None:
        """Note that a request's head was received."""
        self._head = _cancel(self._head)
        self._answering = request
        if not request.content.is_eof():
            self._body = self._loop.call_later(self._limits.body, self._end_body, request)

    def end(self) -> None:
        """Note that the handler has returned."""
        self._body = _cancel(self._body)
        self._answering = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, which is counted, or whose handler failed."""
        if isinstance(exc, HttpProcessingError):
            self._server.limit.count_bad_request(self.peer, type(exc).__name__)
            message = "400 Bad Request\n"
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log a failure of a handler, but neither a malformed request nor a client that disconnected."""
        error = more.get("exc_info")
        disconnected = isinstance(error, ConnectionError) and self.transport is None
        if not disconnected and not isinstance(error, HttpProcessingError):
            super().log_exception(*args, **more)

    def _end_body(self, request: web.BaseRequest) -> None:
        if not request.content.is_eof():
            self.force_close()

    def _abort(self) -> None:
        transport = self.transport
        if transport is not None:
            self.force_close()
            transport.abort()


class HttpServer(web.Server):
    """Creates connections. Calls ``on_connect`` for each, ``on_first_request`` at its first request or at its end."""

    def __init__(
        self,
        handler: Handler,
        on_connect: Callable[[object], None],
        on_first_request: Callable[[object], None],
        limit: ConnectionLimit,
        *,
        limits: TimeLimits,
        abandon: bool,
    ) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=abandon)
        self._handler = handler
        self._on_connect, self._on_first_request = on_connect, on_first_request
        self.limit = limit
        self._limits = limits

    def connection(self, ended: Callable[[], None]) -> HttpConnection:
        """Return a new connection, which calls ``ended`` when it is over."""
        return HttpConnection(self, self._limits, self._loop, ended)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Call ``on_connect``."""
        super().connection_made(handler, transport)
        self._on_connect(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Call ``on_first_request``, in case there was no request."""
        super().connection_lost(handler, exc)
        self._on_first_request(handler)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._on_first_request(request.protocol)
        connection = request.protocol
        assert isinstance(connection, HttpConnection)  # noqa: S101
        connection.begin(request)
        try:
            return await self._handler(request)
        except web.RequestPayloadError as error:
            self.limit.count_bad_request(connection.peer, f"its body: {type(error).__name__}")
            answer = web.Response(status=400, text="400 Bad Request\n")
            answer.force_close()
            return answer
        finally:
            connection.end()

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


class RunningServer:
    """A server whose connections can be closed, those with a request under way last, within ``seconds``."""

    def __init__(self, server: HttpServer, seconds: float) -> None:
        self.connection = server.connection
        self._runner = web.ServerRunner(server, shutdown_timeout=seconds)

    async def start(self) -> None:
        """Let it serve the connections that it is given."""
        await self._runner.setup()

    async def shut_down(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall("server", None)


def _cancel(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
