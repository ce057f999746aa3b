"""Limits of the embedded resolver: connections, pending queries, forwarding loops through other servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from kumadp.dns.resolver.limits import ResolverLimits
from kumadp.dns.resolver.server import Resolver
from tests.dns.test_resolver import HOST, Upstream, resolver, send_query, texts, use
from tests.support.poll import poll_async
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dns.message import Message

__all__ = ["resolver"]

MOST = 20
# Longer than any of these tests (seconds).
LONG = 120.0


@contextlib.asynccontextmanager
async def limited(resolver: Resolver, limits: ResolverLimits) -> AsyncIterator[Resolver]:
    """Open a resolver with these limits and the names of another one."""
    async with Resolver([(HOST, free_ports(1)[0])], limits=limits) as other:
        other.table = resolver.table
        yield other


@contextlib.asynccontextmanager
async def with_silent_upstream(resolver: Resolver) -> AsyncIterator[tuple[Resolver, list[asyncio.Task[Message]]]]:
    """Open a resolver whose forwarded queries are all pending, and do not end by themselves while a test runs."""
    async with (
        limited(resolver, ResolverLimits(forwarded=MOST, forward_within=LONG)) as full,
        Upstream().serving() as upstream,
    ):
        upstream.silent = True
        use(full, upstream, timeout=LONG)
        waiting = [
            asyncio.create_task(send_query(full, f"{number}.example.com", timeout=LONG)) for number in range(MOST)
        ]

        async def all_pending() -> bool:
            return full.counters.forwarded == MOST

        try:
            await poll_async(all_pending, what="pending queries", deadline=LONG)
            yield full, waiting
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_connection_above_the_limit_displaces_the_oldest_idle_one(resolver: Resolver) -> None:
    wire = dns.message.make_query("backend.mesh", "A").to_wire()
    framed = len(wire).to_bytes(2) + wire
    async with contextlib.AsyncExitStack() as stack:
        bounded = await stack.enter_async_context(limited(resolver, ResolverLimits(connections=4)))
        readers = []
        # One client may have half of them.
        for _ in range(3):
            reader, writer = await asyncio.open_connection(HOST, bounded.addresses[0][1])
            stack.callback(writer.close)
            writer.write(framed)
            assert len(await reader.readexactly(2)) == 2
            readers.append(reader)
        with contextlib.suppress(OSError):
            await readers[0].read()
        assert readers[0].at_eof() or readers[0].exception() is not None
        assert not readers[1].at_eof()
        assert texts(await send_query(bounded, "backend.mesh", tcp=True)) == ["240.0.0.1"]


async def test_a_client_that_reads_no_answers_is_aborted(resolver: Resolver) -> None:
    wire = dns.message.make_query("backend.mesh", "A").to_wire()
    flood = (len(wire).to_bytes(2) + wire) * 10_000
    async with limited(resolver, ResolverLimits(write_within=0.3)) as impatient:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (HOST, impatient.addresses[0][1]))

            async def send() -> None:
                while True:
                    await loop.sock_sendall(client, flood)

            # Aborted: a reset, not a regular end behind unread answers.
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                async with asyncio.timeout(60):
                    await send()
        assert texts(await send_query(impatient, "backend.mesh", tcp=True)) == ["240.0.0.1"]


async def test_many_queries_at_once_are_all_answered(resolver: Resolver) -> None:
    count = 5_000
    wire = dns.message.make_query("backend.mesh", "A").to_wire()
    reader, writer = await asyncio.open_connection(HOST, resolver.addresses[0][1])
    writer.write((len(wire).to_bytes(2) + wire) * count)
    writer.write_eof()
    async with asyncio.timeout(60):
        for _ in range(count):
            size = int.from_bytes(await reader.readexactly(2))
            assert (await reader.readexactly(size))[:2] == wire[:2]
        assert await reader.read() == b""
    writer.close()


async def test_a_client_with_few_queries_displaces_one_with_many(resolver: Resolver) -> None:
    async with with_silent_upstream(resolver) as (full, waiting):
        message = dns.message.make_query("other.example.com", "A")
        other = dns.asyncquery.udp(message, HOST, port=full.addresses[0][1], source="127.0.0.2", timeout=LONG)
        waiting.append(asyncio.create_task(other))
        # A query of the first client is displaced, and answered.
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().rcode() for task in done] == [dns.rcode.SERVFAIL]
        assert waiting[-1] not in done
        assert (full._pending.displaced, full.counters.refused) == (1, 0)


async def test_an_idle_connection_is_closed(resolver: Resolver) -> None:
    async with limited(resolver, ResolverLimits(idle=0.05)) as impatient:
        reader, writer = await asyncio.open_connection(HOST, impatient.addresses[0][1])
        assert await reader.read() == b""
        writer.close()


async def test_a_query_above_the_limit_is_not_forwarded(resolver: Resolver) -> None:
    async with with_silent_upstream(resolver) as (full, _):
        assert (await send_query(full, "more.example.com", timeout=LONG)).rcode() == dns.rcode.SERVFAIL
        assert full.counters.refused == 1
        assert texts(await send_query(full, "backend.mesh")) == ["240.0.0.1"]


class Forwarder(asyncio.DatagramProtocol):
    """A name server that forwards every query back to the resolver, from another port and with another number."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.queries = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # In Python 3.11 it is not a DatagramTransport by its type.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.queries += 1
        task = asyncio.get_running_loop().create_task(self._forward(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, data: bytes, addr: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()

        class Client(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _addr: tuple[str, int]) -> None:
                if not answered.done():
                    answered.set_result(data)

        client, _ = await loop.create_datagram_endpoint(Client, remote_addr=(HOST, self._port))
        try:
            client.sendto(bytes([data[0] ^ 1]) + data[1:])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    self.transport.sendto(data[:2] + (await answered)[2:], addr)
        finally:
            client.close()

    async def close(self) -> None:
        """Cancel pending queries."""
        self.transport.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_loop_through_another_server_ends(resolver: Resolver) -> None:
    async with limited(resolver, ResolverLimits(forwarded=MOST)) as bounded:
        await check_loop(bounded)


async def check_loop(resolver: Resolver) -> None:
    loop = asyncio.get_running_loop()
    port = resolver.addresses[0][1]
    transport, forwarder = await loop.create_datagram_endpoint(lambda: Forwarder(port), (HOST, 0))
    try:
        resolver.upstreams.conf = type(resolver.upstreams.conf)((transport.get_extra_info("sockname"),))
        assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.SERVFAIL
        assert resolver.counters.refused > 0

        async def has_ended() -> bool:
            previous = forwarder.queries
            await asyncio.sleep(0.2)
            return forwarder.queries == previous

        await poll_async(has_ended, what="the end of the loop")
        assert forwarder.queries < 20 * MOST
        assert texts(await send_query(resolver, "backend.mesh")) == ["240.0.0.1"]
    finally:
        await forwarder.close()
