"""DNS over TCP (RFC 7766): many queries on a connection, answered as soon as they are ready, with limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from kumadp.host.descriptors import share
from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kumadp.dns.resolver.limits import ResolverLimits
    from kumadp.dns.resolver.udp import Client

    # Called with a query, its client and the callback for the answer (None if there must be none). The callback is
    # called at once, or from the returned task.
    AnswerTcp = Callable[[bytes, Client, Callable[[bytes | None], object]], asyncio.Task[None] | None]

MOST_AT_ONCE = 64
MOST_BUFFERED = 512 * 1024
"""Bytes of answers that a client may leave unread; with more its connection is aborted."""
_RESUME_BELOW = 32 * 1024


def tcp_connection_limit(name: str, limits: ResolverLimits) -> ConnectionLimit:
    """Return the limit of connections: at most half of them for one client, a quarter reserved for this host."""
    most = share(limits.connections)
    return ConnectionLimit(name, most, per_client=max(1, most // 2), reserve=most // 4)


class TcpServer:
    """Serves on a listening socket: ``answer`` is called with each query, and ``connection_limit`` has its connections.

    kumadp stops reading from a client that sends queries faster than they are answered or reads no answers, and aborts
    the connection if it still reads nothing after ``limits.write_within``.
    """

    def __init__(
        self, sock: socket.socket, answer: AnswerTcp, connection_limit: ConnectionLimit, limits: ResolverLimits
    ) -> None:
        self.socket = sock
        self._answer = answer
        self._limits = limits
        self._connections: set[_Connection] = set()
        self._acceptor = Acceptor(sock, connection_limit, self._connect)

    def _connect(self, on_end: Callable[[], None]) -> _Connection:
        connection = _Connection(self._answer, self._limits, lambda: self._disconnect(connection, on_end))
        self._connections.add(connection)
        return connection

    def _disconnect(self, connection: _Connection, on_end: Callable[[], None]) -> None:
        self._connections.discard(connection)
        on_end()

    async def open(self) -> None:
        """Accept connections."""
        self._acceptor.open()

    async def close(self) -> None:
        """Stop accepting, and abort all connections."""
        self._acceptor.stop()
        self.socket.close()
        for connection in tuple(self._connections):
            connection.displace()


class _Connection(asyncio.Protocol):
    """One client's connection, a `kumadp.host.net.connection_limit.LimitedConnection`."""

    def __init__(self, answer: AnswerTcp, limits: ResolverLimits, on_end: Callable[[], None]) -> None:
        self._answer = answer
        self._limits = limits
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._client: Client = ()
        self._received = bytearray()
        self._pending = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking = False
        self._unread = False
        self._deadline: asyncio.TimerHandle | None = None
        self._is_reading = True
        self._at_eof = False
        self._is_closed = False
        self._next_turn: asyncio.Handle | None = None

    def may_be_displaced(self) -> bool:
        """Return whether no query of the client is pending, or the client does not read its answers."""
        return not self._pending or self._unread

    def displace(self) -> None:
        """Abort it."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first query."""
        self._transport = cast("asyncio.Transport", transport)
        self._client = transport.get_extra_info("peername")
        if self._is_closed or not self._client:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_RESUME_BELOW, low=0)
        self._wait(self._limits.idle)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel everything that is pending."""
        self._is_closed = True
        self._cancel()
        if self._next_turn is not None:
            self._next_turn.cancel()
        for task in self._tasks:
            task.cancel()
        self._on_end()

    def data_received(self, data: bytes) -> None:
        """Buffer what the client sent, and answer its queries."""
        self._received += data
        if self._next_turn is None:
            self._take()

    def eof_received(self) -> bool:
        """Return True, which keeps the connection open for pending answers, unless it is closed."""
        self._at_eof = True
        self._wait(self._limits.write_within)
        self._settle()
        return not self._is_closed

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its answers, and abort it after ``write_within``."""
        self._unread = True
        self._wait(self._limits.write_within)
        self._set_reading(on=False)

    def resume_writing(self) -> None:
        """Continue: the client has read all answers."""
        self._unread = False
        self._wait(self._limits.idle)
        self._settle()

    def _take(self) -> None:
        """Answer complete queries, at most `MOST_AT_ONCE` in one turn of the loop."""
        self._next_turn, self._taking = None, True
        at, received = 0, self._received
        for _ in range(MOST_AT_ONCE):
            if self._is_closed or self._pending >= MOST_AT_ONCE or self._unread or self._buffered() > _RESUME_BELOW:
                break
            end = at + 2 + int.from_bytes(received[at : at + 2])
            if len(received) < at + 2 or len(received) < end:
                break
            query = bytes(received[at + 2 : end])
            at = end
            self._pending += 1
            task = self._answer(query, self._client, self._reply)
            if task is not None:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._taking = False
        del received[:at]
        if at and not self._at_eof and not self._unread:
            self._wait(self._limits.idle)
        self._settle()

    def _reply(self, reply: bytes | None) -> None:
        self._pending -= 1
        transport = self._transport
        if self._is_closed or transport is None:
            return
        if reply is not None:
            if self._buffered() + len(reply) > MOST_BUFFERED:
                self.displace()
                return
            transport.write(len(reply).to_bytes(2) + reply)
        if self._next_turn is None and not self._taking:
            self._next_turn = asyncio.get_running_loop().call_soon(self._take)

    def _buffered(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _settle(self) -> None:
        """Resume or pause reading, or close, according to the current state."""
        if self._is_closed or self._transport is None:
            return
        complete = len(self._received) >= 2 and len(self._received) >= 2 + int.from_bytes(self._received[:2])
        accepts = not self._unread and self._pending < MOST_AT_ONCE
        if complete and accepts and self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._take)
        self._set_reading(on=accepts and not complete)
        if self._at_eof and not complete and not self._pending:
            self._transport.close()

    def _set_reading(self, *, on: bool) -> None:
        if on is self._is_reading or self._at_eof or self._transport is None or self._transport.is_closing():
            return
        self._is_reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _wait(self, seconds: float) -> None:
        """Abort the connection after so many seconds, unless the client sends a query or reads answers earlier."""
        self._cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self._pending and not self._unread:
            # A forwarded query has its own time limit.
            self._wait(self._limits.idle)
            return
        self.displace()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
