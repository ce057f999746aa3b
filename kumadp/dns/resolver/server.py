"""The embedded resolver: answers on UDP and TCP, from a table and from other name servers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.dns.message import REFUSED, SERVFAIL, code_of, write
from kumadp.dns.resolver import upstreams
from kumadp.dns.resolver.access import Access
from kumadp.dns.resolver.answer import Forward, Transport, answer
from kumadp.dns.resolver.counters import Counters
from kumadp.dns.resolver.table import Table
from kumadp.dns.resolver.tcp import TcpServer, tcp_connection_limit
from kumadp.dns.resolver.udp import UdpSocket
from kumadp.dns.resolver.upstreams import Upstreams
from kumadp.host.descriptors import share
from kumadp.host.net.client_slots import ClientSlots, client_of
from kumadp.host.net.serve import bind_tcp, bind_udp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from kumadp.dns.resolver.udp import Client

log = logging.getLogger("kumadp.dns")

_PURPOSE = "--dns-coredns-port"
# What was asked just before the end is answered within this time (seconds).
_LAST = 0.5


class _Pending:
    """A query that is forwarded, a member of `Resolver`'s shares."""

    task: asyncio.Task[None] | None = None
    displaced = False

    def may_be_displaced(self) -> bool:
        """Always: its client gets SERVFAIL."""
        return True

    def displace(self) -> None:
        """Give it up."""
        self.displaced = True
        if self.task is not None:
            self.task.cancel()


class Resolver:
    """Serves on ``addresses``, each a host and a port. ``reuse_port``: others may have the port too (SO_REUSEPORT).
    ``dual``: ``::`` is for IPv4 too.

    ``table`` may be replaced by another one at any time; ``upstreams`` says who else is asked, and ``access`` for whom.
    It may be opened again after it was closed.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], *, reuse_port: bool = False, dual: bool = False) -> None:
        self.addresses = tuple(addresses)
        self._reuse_port = reuse_port
        self._dual = dual
        self.table = Table()
        self.access = Access()
        self.counters = Counters()
        self.upstreams = Upstreams(own=self.addresses, counters=self.counters)
        self._sockets: list[UdpSocket] = []
        self._servers: list[TcpServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = tcp_connection_limit("DNS over TCP")
        # A client with few queries under way takes the place of one with many; a quarter is for this host.
        self._pending: ClientSlots[_Pending] = ClientSlots(upstreams.MOST_AT_ONCE, upstreams.MOST_AT_ONCE)

    def bind(self) -> None:
        """Have the sockets, in which queries wait until it is open; raises PortsTaken."""
        for host, port in self.addresses:
            self._bind(host, port)

    def _bind(self, host: str, port: int) -> tuple[UdpSocket, TcpServer]:
        only_ipv6 = not self._dual
        udp = UdpSocket(bind_udp(host, port, _PURPOSE, reuse_port=self._reuse_port, only_ipv6=only_ipv6), self)
        self._sockets.append(udp)
        tcp = TcpServer(
            bind_tcp(host, port, _PURPOSE, reuse_port=self._reuse_port, only_ipv6=only_ipv6),
            self.answer_tcp,
            self._places,
        )
        self._servers.append(tcp)
        return udp, tcp

    async def listen(self, host: str, port: int) -> tuple[socket.socket, socket.socket]:
        """Answer on one more address; its sockets for UDP and TCP. Raises PortsTaken."""
        udp, tcp = self._bind(host, port)
        await tcp.open()
        udp.open()
        if (host, port) not in self.addresses:
            self.addresses = self.upstreams.own = (*self.addresses, (host, port))
        return udp.socket, tcp.socket

    async def open(self) -> None:
        """Bind where that was not done yet, and answer; raises PortsTaken."""
        try:
            if not self._sockets:
                self.bind()
            for server in self._servers:
                await server.open()
        except BaseException:
            await self.close()
            raise
        for sock in self._sockets:
            sock.open()

    async def close(self) -> None:
        """Answer what has come, and give the ports up."""
        for sock in self._sockets:
            sock.stop()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_LAST)
        for task in list(self._tasks):
            task.cancel()
        for sock in self._sockets:
            sock.close()
        for server in self._servers:
            await server.close()
        self._sockets.clear()
        self._servers.clear()

    async def __aenter__(self) -> Resolver:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def answer_udp(self, data: bytes, client: Client, reply: Callable[[bytes], object]) -> None:
        """Answer a query of a client, now or later."""
        found = self._answer(data, client, "udp")
        if isinstance(found, Forward):
            self._forward(found, data, client, "udp", reply)
        elif found is not None:
            reply(found)

    def answer_tcp(
        self, data: bytes, client: Client, reply: Callable[[bytes | None], object]
    ) -> asyncio.Task[None] | None:
        """Answer a query of a client, at once or from the task that is returned; None: there is no answer."""
        found = self._answer(data, client, "tcp")
        if isinstance(found, Forward):
            return self._forward(found, data, client, "tcp", reply)
        reply(found)
        return None

    def _answer(self, data: bytes, client: Client, transport: Transport) -> bytes | Forward | None:
        found = answer(data, self.table, transport)
        counters = self.counters
        if found is None:
            counters.dropped += 1
        elif not isinstance(found, Forward):
            # What could not be read has no type.
            end = data.find(b"\x00", 12) if found[5] else -1
            counters.local[int.from_bytes(data[end + 1 : end + 3]) if end > 0 else 0] += 1
            counters.codes[code_of(found)] += 1
        elif self.upstreams.asked.knows(client[1], found.query.number):
            counters.loops += 1
            counters.codes[REFUSED] += 1
            return write(found.query, REFUSED)
        elif not found.ours and not self.access.allows(client[0]):
            counters.codes[REFUSED] += 1
            return write(found.query, REFUSED)
        return found

    def _forward(
        self, asked: Forward, data: bytes, client: Client, transport: Transport, reply: Callable[[bytes], object]
    ) -> asyncio.Task[None] | None:
        self.counters.upstream[asked.query.type] += 1
        name, local = client_of(client)
        pending = self._pending
        pending.total = pending.per_client = share(upstreams.MOST_AT_ONCE, 3)
        pending.reserve = pending.total // 4
        # A query of its own that waits is not given up for another: in a loop that would never end.
        if not pending.make_room(name, local=local or name in self.upstreams.local, own_too=False):
            self.counters.refused += 1
            self.counters.codes[SERVFAIL] += 1
            reply(write(asked.query, SERVFAIL))
            return None
        one = _Pending()
        pending.add(name, one)
        one.task = asyncio.get_running_loop().create_task(self._resolve(one, asked, data, transport, reply))
        self._tasks.add(one.task)
        one.task.add_done_callback(self._tasks.discard)
        one.task.add_done_callback(lambda _: pending.remove(name, one))
        return one.task

    async def _resolve(
        self, one: _Pending, asked: Forward, data: bytes, transport: Transport, reply: Callable[[bytes], object]
    ) -> None:
        try:
            found = await self.upstreams.resolve(asked, data, transport)
        except asyncio.CancelledError:
            if not one.displaced:
                raise
            self.counters.failed += 1
            found = write(asked.query, SERVFAIL)
        self.counters.codes[code_of(found)] += 1
        reply(found)
