"""Accepting within bounds, on both loops: also where no descriptor is left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit
from tests.support.event_loops import on_both_loops
from tests.support.hostile_clients import no_descriptors_left
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DEADLINE = 20.0


class Echo(asyncio.Protocol):
    """Sends back what it gets; busy once it got anything."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self.busy = False
        self.transport: asyncio.Transport | None = None

    def may_be_displaced(self) -> bool:
        return not self.busy

    def displace(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.busy = True
        assert self.transport is not None
        self.transport.write(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._ended()


@contextlib.asynccontextmanager
async def served(limit: ConnectionLimit) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        acceptor = Acceptor(sock, limit, Echo)
        acceptor.open()
        try:
            yield sock.getsockname()[1]
        finally:
            await acceptor.close()
            while limit.slots.displace_any():
                pass


async def echoes(port: int) -> bool:
    with contextlib.suppress(OSError, EOFError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"x")
            return await reader.readexactly(1) == b"x"
        finally:
            writer.close()
    return False


@on_both_loops
async def test_one_too_many_displaces_the_oldest_that_is_idle() -> None:
    async with asyncio.timeout(DEADLINE), served(ConnectionLimit("test", 3)) as port:
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await echoes(port)
        assert await clients[0][0].read() == b""
        for _, writer in clients:
            writer.close()


@on_both_loops
async def test_one_too_many_is_turned_away_where_all_are_busy() -> None:
    limit = ConnectionLimit("test", 2)
    async with asyncio.timeout(DEADLINE), served(limit) as port:
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in clients:
            writer.write(b"x")
            await reader.readexactly(1)
        assert not await echoes(port)
        assert limit.status()["refused"] == 1
        for _, writer in clients:
            writer.close()


class Counting(ConnectionLimit):
    """Counts how often nothing could be accepted."""

    failures = 0

    def log_exhausted(self, error: OSError) -> None:
        self.failures += 1
        super().log_exhausted(error)


@on_both_loops
async def test_a_server_without_descriptors_accepts_again_later() -> None:
    limit = Counting("test", 50)
    async with asyncio.timeout(DEADLINE), served(limit) as port:
        assert await echoes(port)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket()) for _ in range(5)]
            stack.enter_context(no_descriptors_left())
            for client in clients:
                client.connect(("127.0.0.1", port))

            async def twice() -> bool:
                return limit.failures >= 2

            # The socket stays readable: it is looked at again after a pause, not in each turn of the loop.
            await poll_async(twice, what="two attempts")
            assert limit.failures < 10

        async def back() -> bool:
            return await echoes(port)

        await poll_async(back, what="an answer once there are descriptors")


@on_both_loops
async def test_a_connection_that_is_displaced_before_it_began_is_aborted() -> None:
    limit = ConnectionLimit("test", 1)
    async with asyncio.timeout(DEADLINE), served(limit) as port:
        clients = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(20)))
        assert await echoes(port)

        async def one_at_most() -> bool:
            return len(limit.slots) <= 1

        await poll_async(one_at_most, what="one connection")
        for _, writer in clients:
            writer.close()
