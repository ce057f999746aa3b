"""A gRPC server on a Unix socket, for processes of our own user."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler

from kumadp.grpc.call import OK, SHUTDOWN_SECONDS, UNIMPLEMENTED, Call, FrameProtocol, StreamEnded, configure
from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from grpclib.protocol import EventsProcessor, Stream

    from kumadp.host.net.connection_limit import ConnectionLimits

# Time limit of a peer for its first bytes (seconds).
FIRST_WITHIN = 10.0


class GrpcServer:
    """Serves raw streams on a Unix socket to processes of our own user, or root; rejects others."""

    def __init__(
        self,
        handlers: Mapping[str, Callable[[Call, int], Awaitable[None]]],
        allowed: Callable[[int], bool],
        *,
        name: str = "gRPC",
        connections: ConnectionLimits | None = None,
    ) -> None:
        """``handlers`` by path are called with the call and the peer's pid, ``allowed`` with the peer's uid.

        ``name`` is that of the connection limit, which is added to ``connections``.
        """
        self._handlers = handlers
        self._name = name
        self._connections = connections
        self._allowed = allowed
        self._protocols: set[_ServerProtocol] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor: Acceptor | None = None
        # No pings: Envoy's main thread may be busy for a minute with a large update.
        self._config = Configuration(_keepalive_time=None).__for_server__()

    def start(self, sock: socket.socket) -> None:
        """Accept connections on a socket, which the caller owns."""
        limit = ConnectionLimit.for_socket(self._name, sock)
        if self._connections is not None:
            self._connections.add(limit)
        self._acceptor = Acceptor(sock, limit, self._protocol)
        self._acceptor.open()

    def stop(self) -> None:
        """Stop accepting connections."""
        if self._acceptor is not None:
            self._acceptor.stop()

    async def close(self) -> None:
        """Close all streams and connections."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SHUTDOWN_SECONDS)
        for protocol in tuple(self._protocols):
            protocol.processor.close("closed by us")

    def _protocol(self, ended: Callable[[], None]) -> _ServerProtocol:
        return _ServerProtocol(self, self._config, ended)

    def admit(self, protocol: _ServerProtocol, uid: int) -> bool:
        """Return whether a peer is allowed, and remember its connection if so."""
        if allowed := self._allowed(uid):
            self._protocols.add(protocol)
        return allowed

    def forget(self, protocol: _ServerProtocol) -> None:
        """Note that a connection was lost."""
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
        except StreamEnded:
            await call.finish(OK)
        finally:
            call.close()


class _ServerHandler(AbstractHandler):
    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self.pid = 0
        self.streams = 0

    def accept(self, stream: Stream, headers: list[tuple[str, str]], release_stream: Callable[[], None]) -> None:
        self.streams += 1

        def released() -> None:
            self.streams -= 1
            release_stream()

        self._server.accept(Call(stream, released), dict(headers).get(":path", ""), self.pid)

    def cancel(self, stream: Stream) -> None:
        """Do nothing: the call has its own hook."""

    def close(self) -> None:
        """Do nothing: the calls have their own hooks."""


class _ServerProtocol(FrameProtocol):
    handler: _ServerHandler
    processor: EventsProcessor

    def __init__(self, server: GrpcServer, config: Configuration, ended: Callable[[], None]) -> None:
        super().__init__(_ServerHandler(server), config, configure(client=False))
        self._server = server
        self._ended = ended
        self._raw: asyncio.Transport | None = None
        self._first: asyncio.TimerHandle | None = None
        self._admitted = False
        self._displaced = False

    def may_be_displaced(self) -> bool:
        """Return whether it has no stream."""
        return not self.handler.streams

    def displace(self) -> None:
        """Abort it."""
        self._displaced = True
        if self._raw is not None:
            self._raw.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        self.handler.pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._admitted = self._server.admit(self, uid)
        if self._admitted:
            super().connection_made(transport)
            self._first = asyncio.get_running_loop().call_later(FIRST_WITHIN, self.displace)
        if self._displaced or not self._admitted:
            self._raw.abort()

    def data_received(self, data: bytes) -> None:
        if self._first is not None:
            self._first.cancel()
            self._first = None
        if self._admitted:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._ended()
        if self._first is not None:
            self._first.cancel()
        if self._admitted:
            super().connection_lost(exc)
            self._server.forget(self)
