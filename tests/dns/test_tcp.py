"""DNS over TCP: how queries of one connection are read and answered, whoever answers them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from kumadp.dns.resolver.limits import ResolverLimits
from kumadp.dns.resolver.tcp import MOST_AT_ONCE, TcpServer, tcp_connection_limit
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from kumadp.dns.resolver.udp import Client

HOST = "127.0.0.1"


class Answers:
    """Keeps the queries and the callbacks for their answers."""

    def __init__(self) -> None:
        self.pending: list[tuple[bytes, Callable[[bytes | None], object]]] = []
        self.at_once = False

    def answer(self, data: bytes, _client: Client, reply: Callable[[bytes | None], object]) -> None:
        if self.at_once:
            reply(data.upper())
        else:
            self.pending.append((data, reply))

    async def wait_for(self, count: int) -> None:
        async def received() -> bool:
            return len(self.pending) == count

        await poll_async(received, what=f"{count} queries")


@contextlib.asynccontextmanager
async def connected(
    limits: ResolverLimits | None = None,
) -> AsyncIterator[tuple[Answers, asyncio.StreamReader, asyncio.StreamWriter]]:
    limits = limits or ResolverLimits()
    sock = socket.create_server((HOST, 0))
    sock.setblocking(False)
    answers = Answers()
    server = TcpServer(sock, answers.answer, tcp_connection_limit("a test", limits), limits)
    await server.open()
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        yield answers, reader, writer
    finally:
        writer.close()
        await server.close()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


async def read(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))


async def test_a_query_may_arrive_in_pieces() -> None:
    async with connected() as (answers, reader, writer):
        answers.at_once = True
        for byte in framed(b"one") + framed(b"two"):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert [await read(reader), await read(reader)] == [b"ONE", b"TWO"]


async def test_answers_are_sent_as_soon_as_they_are_ready() -> None:
    async with connected() as (answers, reader, writer):
        writer.write(framed(b"slow") + framed(b"none") + framed(b"fast"))
        await answers.wait_for(3)
        (_, slow), (_, none), (_, fast) = answers.pending
        fast(b"1")
        none(None)
        slow(b"2")
        assert [await read(reader), await read(reader)] == [b"1", b"2"]


async def test_no_more_queries_are_read_than_may_be_pending() -> None:
    async with connected() as (answers, reader, writer):
        writer.write(framed(b"x") * (MOST_AT_ONCE + 5))
        await answers.wait_for(MOST_AT_ONCE)
        await asyncio.sleep(0.05)
        assert len(answers.pending) == MOST_AT_ONCE
        for _, reply in answers.pending[:5]:
            reply(b"y")
        await answers.wait_for(MOST_AT_ONCE + 5)
        assert [await read(reader) for _ in range(5)] == [b"y"] * 5


async def test_a_client_that_has_sent_all_still_gets_its_answers() -> None:
    async with connected() as (answers, reader, writer):
        writer.write(framed(b"x"))
        writer.write_eof()
        await answers.wait_for(1)
        answers.pending[0][1](b"y")
        assert await read(reader) == b"y"
        assert await reader.read() == b""


async def test_a_pending_query_keeps_its_connection_open() -> None:
    async with connected(ResolverLimits(idle=0.05)) as (answers, reader, writer):
        writer.write(framed(b"x"))
        await answers.wait_for(1)
        await asyncio.sleep(0.2)
        answers.pending[0][1](b"y")
        assert await read(reader) == b"y"
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""


async def test_an_answer_after_the_client_is_gone_is_dropped() -> None:
    async with connected() as (answers, _, writer):
        writer.write(framed(b"x"))
        await answers.wait_for(1)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        answers.pending[0][1](b"y")
