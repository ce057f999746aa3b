"""DNS over TCP (RFC 7766): many queries on a connection, answered as they are ready, and bounds to all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from kumadp.host.descriptors import share
from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kumadp.dns.resolver.udp import Client

    # Gets a query, its client and what takes the answer (None: there is none), at once or from the task returned.
    Answer = Callable[[bytes, Client, Callable[[bytes | None], object]], asyncio.Task[None] | None]

IDLE = 10.0
"""A connection without a query is closed after so many seconds (RFC 7766 6.2.3)."""
MOST_CONNECTIONS = 256
MOST_AT_ONCE = 64
MOST_BUFFERED = 512 * 1024
"""Answers in bytes that a client may leave unread; then its connection is aborted."""
_READ_ON_BELOW = 32 * 1024
WRITE_WITHIN = 5.0


def tcp_connection_limit(name: str) -> ConnectionLimit:
    """The places for DNS over TCP: half of them at most for one client, a quarter for this host only."""
    most = share(MOST_CONNECTIONS)
    return ConnectionLimit(name, most, per_client=max(1, most // 2), reserve=most // 4)


class TcpServer:
    """Serves on a listening socket; ``answer`` gets each query, and a connection has one of the ``places``.

    A client that sends queries faster than they are answered, or reads no answers, is read from no further; one that
    goes on reading nothing is aborted.
    """

    def __init__(self, sock: socket.socket, answer: Answer, places: ConnectionLimit) -> None:
        self.socket = sock
        self._answer = answer
        self._connections: set[_Connection] = set()
        self._acceptor = Acceptor(sock, places, self._made)

    def _made(self, ended: Callable[[], None]) -> _Connection:
        connection = _Connection(self._answer, lambda: self._over(connection, ended))
        self._connections.add(connection)
        return connection

    def _over(self, connection: _Connection, ended: Callable[[], None]) -> None:
        self._connections.discard(connection)
        ended()

    async def open(self) -> None:
        """Accept connections."""
        self._acceptor.open()

    async def close(self) -> None:
        """Accept no more, and hang up."""
        self._acceptor.stop()
        self.socket.close()
        for connection in tuple(self._connections):
            connection.displace()


class _Connection(asyncio.Protocol):
    """One client's connection, a `kumadp.host.net.connection_limit.LimitedConnection`."""

    def __init__(self, answer: Answer, ended: Callable[[], None]) -> None:
        self._answer = answer
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._client: Client = ()
        self._received = bytearray()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking = False
        self._unread = False
        self._deadline: asyncio.TimerHandle | None = None
        self._reading = True
        self._last = False
        self._gone = False
        self._turn: asyncio.Handle | None = None

    def may_be_displaced(self) -> bool:
        """Whether no query of its waits for an answer, or it does not read them."""
        return not self._under_way or self._unread

    def displace(self) -> None:
        """Abort it."""
        self._gone = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a query."""
        self._transport = cast("asyncio.Transport", transport)
        self._client = transport.get_extra_info("peername")
        if self._gone or not self._client:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_READ_ON_BELOW, low=0)
        self._wait(IDLE)

    def connection_lost(self, _exc: Exception | None) -> None:
        """End."""
        self._gone = True
        self._cancel()
        if self._turn is not None:
            self._turn.cancel()
        for task in self._tasks:
            task.cancel()
        self._ended()

    def data_received(self, data: bytes) -> None:
        """Take what a client sends."""
        self._received += data
        if self._turn is None:
            self._take()

    def eof_received(self) -> bool:
        """A client that has sent all may still wait for answers; True keeps the connection for them."""
        self._last = True
        self._wait(WRITE_WITHIN)
        self._settle()
        return not self._gone

    def pause_writing(self) -> None:
        """The client does not read its answers: it has a moment, and nothing more of it is read."""
        self._unread = True
        self._wait(WRITE_WITHIN)
        self._read(on=False)

    def resume_writing(self) -> None:
        """It has read all."""
        self._unread = False
        self._wait(IDLE)
        self._settle()

    def _take(self) -> None:
        """Have whole queries answered, as many in one turn of the loop as may be under way."""
        self._turn, self._taking = None, True
        at, received = 0, self._received
        for _ in range(MOST_AT_ONCE):
            if self._gone or self._under_way >= MOST_AT_ONCE or self._unread or self._buffered() > _READ_ON_BELOW:
                break
            end = at + 2 + int.from_bytes(received[at : at + 2])
            if len(received) < at + 2 or len(received) < end:
                break
            query = bytes(received[at + 2 : end])
            at = end
            self._under_way += 1
            task = self._answer(query, self._client, self._reply)
            if task is not None:
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._taking = False
        del received[:at]
        if at and not self._last and not self._unread:
            self._wait(IDLE)
        self._settle()

    def _reply(self, reply: bytes | None) -> None:
        self._under_way -= 1
        transport = self._transport
        if self._gone or transport is None:
            return
        if reply is not None:
            if self._buffered() + len(reply) > MOST_BUFFERED:
                self.displace()
                return
            transport.write(len(reply).to_bytes(2) + reply)
        if self._turn is None and not self._taking:
            self._turn = asyncio.get_running_loop().call_soon(self._take)

    def _buffered(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _settle(self) -> None:
        """Read on, or not, or end, as things are now."""
        if self._gone or self._transport is None:
            return
        whole = len(self._received) >= 2 and len(self._received) >= 2 + int.from_bytes(self._received[:2])
        takes = not self._unread and self._under_way < MOST_AT_ONCE
        if whole and takes and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take)
        self._read(on=takes and not whole)
        if self._last and not whole and not self._under_way:
            self._transport.close()

    def _read(self, *, on: bool) -> None:
        if on is self._reading or self._last or self._transport is None or self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _wait(self, seconds: float) -> None:
        """Abort it after so many seconds, unless a query or a reader of answers comes before."""
        self._cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self._under_way and not self._unread:
            # A forwarded query takes its time, which has its own bounds.
            self._wait(IDLE)
            return
        self.displace()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
