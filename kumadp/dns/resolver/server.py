"""The embedded resolver: answers by UDP and TCP, from a table or with the help of other name servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from kumadp.dns.message import REFUSED, SERVFAIL, code_of, encode_answer
from kumadp.dns.resolver.access import Access
from kumadp.dns.resolver.answer import Forward, Transport, answer
from kumadp.dns.resolver.counters import Counters
from kumadp.dns.resolver.limits import ResolverLimits
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
    from kumadp.host.net.connection_limit import ConnectionLimits

log = logging.getLogger("kumadp.dns")

_PURPOSE = "--dns-coredns-port"
# How long a query for a name of the mesh waits for the names that are due (seconds): clients give up after 5.
_NAMES_WITHIN = 3.0
# Pending queries have this time at the end (seconds).
_CLOSE_WITHIN = 0.5
_LIMITS = ResolverLimits()


class _PendingQuery:
    """A query that is being forwarded, in one of the slots of `Resolver`."""

    task: asyncio.Task[None] | None = None
    displaced = False

    def may_be_displaced(self) -> bool:
        """Return True: its client gets SERVFAIL."""
        return True

    def displace(self) -> None:
        """Cancel it."""
        self.displaced = True
        if self.task is not None:
            self.task.cancel()


class Resolver:
    """Serves on ``addresses``, each a host and a port. ``reuse_port``: the port may be shared (SO_REUSEPORT).
    ``dual``: ``::`` is for IPv4 too.

    ``table`` may be replaced at any time. ``names_due`` is set once a table with names replaces this one, and None if
    none is expected: queries that Envoy's DNS filter does not answer wait for it. ``upstreams`` has the servers to
    forward to, and ``access`` the clients that may use them. A closed resolver may be opened again.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        *,
        reuse_port: bool = False,
        dual: bool = False,
        limits: ResolverLimits = _LIMITS,
        connections: ConnectionLimits | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self._reuse_port = reuse_port
        self._dual = dual
        self.table = Table()
        self.names_due: asyncio.Event | None = None
        self.access = Access()
        self.counters = Counters()
        self._limits = limits
        self.upstreams = Upstreams(own=self.addresses, counters=self.counters, limits=limits)
        self._sockets: list[UdpSocket] = []
        self._servers: list[TcpServer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection_limit = tcp_connection_limit("DNS over TCP", limits)
        if connections is not None:
            connections.add(self._connection_limit)
        # A client with few pending queries displaces one with many; a quarter is reserved for this host.
        self._pending: ClientSlots[_PendingQuery] = ClientSlots(limits.forwarded, limits.forwarded)

    def bind(self) -> None:
        """Bind the sockets, which queue queries until `open`; raises PortsTaken."""
        for host, port in self.addresses:
            self._bind(host, port)

    def _bind(self, host: str, port: int) -> tuple[UdpSocket, TcpServer]:
        only_ipv6 = not self._dual
        udp = UdpSocket(bind_udp(host, port, _PURPOSE, reuse_port=self._reuse_port, only_ipv6=only_ipv6), self)
        self._sockets.append(udp)
        tcp = TcpServer(
            bind_tcp(host, port, _PURPOSE, reuse_port=self._reuse_port, only_ipv6=only_ipv6),
            self.answer_tcp,
            self._connection_limit,
            self._limits,
        )
        self._servers.append(tcp)
        return udp, tcp

    async def listen(self, host: str, port: int) -> tuple[socket.socket, socket.socket]:
        """Answer on one more address and return its UDP and TCP sockets; raises PortsTaken."""
        udp, tcp = self._bind(host, port)
        await tcp.open()
        udp.open()
        if (host, port) not in self.addresses:
            self.addresses = self.upstreams.own = (*self.addresses, (host, port))
        return udp.socket, tcp.socket

    async def open(self) -> None:
        """Bind unless `bind` was called, and answer; raises PortsTaken."""
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
        """Answer the queries that have arrived, and close the ports."""
        for sock in self._sockets:
            sock.stop()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSE_WITHIN)
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
        result = self._answer(data, client, "udp")
        if isinstance(result, Forward):
            self._forward(result, data, client, "udp", reply)
        elif result is not None:
            reply(result)

    def answer_tcp(
        self, data: bytes, client: Client, reply: Callable[[bytes | None], object]
    ) -> asyncio.Task[None] | None:
        """Answer a query of a client at once, or from the returned task; ``reply`` gets None if there is no answer."""
        result = self._answer(data, client, "tcp")
        if isinstance(result, Forward):
            return self._forward(result, data, client, "tcp", reply)
        reply(result)
        return None

    def _answer(self, data: bytes, client: Client, transport: Transport) -> bytes | Forward | None:
        result = answer(data, self.table, transport)
        counters = self.counters
        if result is None:
            counters.dropped += 1
        elif not isinstance(result, Forward):
            # A query that could not be parsed has no type.
            end = data.find(b"\x00", 12) if result[5] else -1
            counters.local[int.from_bytes(data[end + 1 : end + 3]) if end > 0 else 0] += 1
            counters.codes[code_of(result)] += 1
        elif self.upstreams.sent_queries.includes(client[1], result.query.number):
            counters.loops += 1
            counters.codes[REFUSED] += 1
            return encode_answer(result.query, REFUSED)
        elif not result.in_mesh and not self.access.allows(client[0]):
            counters.codes[REFUSED] += 1
            return encode_answer(result.query, REFUSED)
        return result

    def _forward(
        self, forward: Forward, data: bytes, client: Client, transport: Transport, reply: Callable[[bytes], object]
    ) -> asyncio.Task[None] | None:
        self.counters.upstream[forward.query.type] += 1
        name, local = client_of(client)
        pending = self._pending
        pending.total = pending.per_client = share(self._limits.forwarded, 3)
        pending.reserve = pending.total // 4
        # A client does not displace its own queries: in a forwarding loop that would never end.
        if not pending.make_room(name, local=local or name in self.upstreams.local, own_too=False):
            self.counters.refused += 1
            self.counters.codes[SERVFAIL] += 1
            reply(encode_answer(forward.query, SERVFAIL))
            return None
        query = _PendingQuery()
        pending.add(name, query)
        task = self._resolve(query, forward, data, transport, reply, self.table)
        query.task = asyncio.get_running_loop().create_task(task)
        self._tasks.add(query.task)
        query.task.add_done_callback(self._tasks.discard)
        query.task.add_done_callback(lambda _: pending.remove(name, query))
        return query.task

    async def _resolve(
        self,
        pending: _PendingQuery,
        forward: Forward,
        data: bytes,
        transport: Transport,
        reply: Callable[[bytes], object],
        table: Table,
    ) -> None:
        # Names may come while Envoy's filter is silent.
        names_due = self.names_due
        # And after the query was received: without a filter that could be queried, the new table has the answer. Where
        # it would forward the query, this client may not be allowed to have it forwarded there.
        renewed = self._local_answer(data, transport) if self.table is not table else None
        try:
            reply_data = renewed or await self.upstreams.resolve(forward, data, transport)
            if names_due is not None and forward.in_mesh and code_of(reply_data) == SERVFAIL:
                reply_data = await self._answer_once_named(names_due, data, transport) or reply_data
        except asyncio.CancelledError:
            if not pending.displaced:
                raise
            self.counters.failed += 1
            reply_data = encode_answer(forward.query, SERVFAIL)
        self.counters.codes[code_of(reply_data)] += 1
        reply(reply_data)

    async def _answer_once_named(self, names_due: asyncio.Event, data: bytes, transport: Transport) -> bytes | None:
        """Answer from the table that replaces this one; None if that does not come in time, or has no answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NAMES_WITHIN):
                await names_due.wait()
        return self._local_answer(data, transport)

    def _local_answer(self, data: bytes, transport: Transport) -> bytes | None:
        result = answer(data, self.table, transport)
        return result if isinstance(result, bytes) else None
