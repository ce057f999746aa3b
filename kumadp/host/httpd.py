"""aiohttp's server with limits on how long a client may take, and without a word of what serves it.

aiohttp takes 130 ms to import: `kumadp.host.serve` imports this in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# How long a body that nobody wants is still read (seconds), so that the client sees the answer and not a reset.
LINGERING = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client may take (seconds): for a request's head, to read an answer, between two requests.

    Those of Kuma 2.14's readiness reporter. Its read limit of 10 s is not reached: what follows a head is not waited
    for longer than `LINGERING`, unless a handler reads it, which then has a limit of its own.
    """

    head: float = 1.0
    write: float = 30.0
    idle: float = 120.0


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_answering", "_head", "_limits", "_server", "_write")

    def __init__(self, server: Server, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, access_log=None, lingering_time=LINGERING, keepalive_timeout=limits.idle)  # type: ignore[arg-type]  # None: no access log
        self._server = server
        self._limits = limits
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head = self._loop.call_later(self._limits.head, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._head = _cancel(self._head)
        self._write = _cancel(self._write)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what a client sends; a head that has begun must end soon."""
        if self._head is None and not self._answering:
            self._head = self._loop.call_later(self._limits.head, self.force_close)
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        super().pause_writing()
        self._write = self._write or self._loop.call_later(self._limits.write, self._abort)

    def resume_writing(self) -> None:
        """It has read it."""
        super().resume_writing()
        self._write = _cancel(self._write)

    def begin(self) -> None:
        """A head has come."""
        self._head = _cancel(self._head)
        self._answering = True

    def end(self) -> None:
        """Its answer is there."""
        self._answering = False

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Server(web.Server):
    """Makes connections; ``came`` hears of each, ``spoke`` of the first request on it, or of its end."""

    def __init__(
        self,
        handler: Handler,
        came: Callable[[object], None],
        spoke: Callable[[object], None],
        *,
        limits: Limits,
        abandon: bool,
    ) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=abandon)
        self._handler = handler
        self._came, self._spoke = came, spoke
        self._limits = limits

    def __call__(self) -> Connection:
        """A connection."""
        return Connection(self, self._limits, self._loop)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Tell of it."""
        super().connection_made(handler, transport)
        self._came(handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Tell of it."""
        super().connection_lost(handler, exc)
        self._spoke(handler)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._spoke(request.protocol)
        connection = request.protocol
        assert isinstance(connection, Connection)  # noqa: S101
        connection.begin()
        try:
            return await self._handler(request)
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


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.popall("server", None)


def _cancel(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
