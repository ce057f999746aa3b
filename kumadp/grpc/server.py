"""A gRPC server on a Unix socket, for processes of our own user."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler

from kumadp.grpc.call import OK, SHUTDOWN_SECONDS, UNIMPLEMENTED, Call, Ended, FrameProtocol, configure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from grpclib.protocol import EventsProcessor, Stream


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
            await call.finish(OK)
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


class _ServerProtocol(FrameProtocol):
    handler: _Accepting
    processor: EventsProcessor

    def __init__(self, server: Server, config: Configuration) -> None:
        super().__init__(_Accepting(server), config, configure(client=False))
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
