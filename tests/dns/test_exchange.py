"""One query to one server: which messages are accepted as its answer, and which queries are our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

import dns.message
import pytest

from kumadp.dns.message import encode_query, question_of
from kumadp.dns.resolver.exchange import SentQueries, answer_within, query_tcp, query_udp
from tests.support.event_loops import on_both_loops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "127.0.0.1"
QUERY = encode_query("Www.example.com", number=7)
QUESTION = question_of(QUERY)


def answer(query: bytes) -> bytes:
    return dns.message.make_response(dns.message.from_wire(query)).to_wire()


def other_case(query: bytes) -> bytes:
    return answer(query).replace(b"Www", b"wWW")


def other_number(query: bytes) -> bytes:
    return answer(bytes([query[0] ^ 1]) + query[1:])


@contextlib.asynccontextmanager
async def udp_server(reply: Callable[[bytes], list[bytes]]) -> AsyncIterator[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((HOST, 0))

        def receive() -> None:
            query, client = sock.recvfrom(4096)
            for message in reply(query):
                sock.sendto(message, client)

        loop.add_reader(sock, receive)
        try:
            yield sock.getsockname()
        finally:
            loop.remove_reader(sock)


@contextlib.asynccontextmanager
async def tcp_server(reply: Callable[[bytes], list[bytes]]) -> AsyncIterator[tuple[str, int]]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        for message in reply(query):
            writer.write(len(message).to_bytes(2) + message)
        writer.close()

    server = await asyncio.start_server(connected, HOST, 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


async def test_only_the_answer_to_the_query_is_accepted() -> None:
    def reply(query: bytes) -> list[bytes]:
        other_name = answer(query).replace(b"example", b"exomple")
        return [b"", query, other_number(query), other_name, answer(query)]

    async with udp_server(reply) as server:
        accepted = await query_udp(server, QUERY, QUESTION, SentQueries())
    async with tcp_server(reply) as server:
        by_tcp = await query_tcp(server, QUERY, QUESTION, SentQueries())
    for message in (accepted, by_tcp):
        assert message[2:] == answer(QUERY)[2:]


async def test_numbers_are_random() -> None:
    numbers = set()

    def reply(query: bytes) -> list[bytes]:
        numbers.add(query[:2])
        return [answer(query)]

    async with udp_server(reply) as server:
        for _ in range(20):
            assert (await query_udp(server, QUERY, QUESTION, SentQueries()))[:2] in numbers
    assert len(numbers) > 15


async def test_an_answer_in_the_same_letter_case_is_preferred() -> None:
    async with udp_server(lambda query: [other_case(query), answer(query)]) as server:
        assert b"Www" in await query_udp(server, QUERY, QUESTION, SentQueries())
    async with udp_server(lambda query: [other_case(query)]) as server:
        assert b"wWW" in await query_udp(server, QUERY, QUESTION, SentQueries())
    async with tcp_server(lambda query: [other_case(query)]) as server:
        assert b"wWW" in await query_tcp(server, QUERY, QUESTION, SentQueries())


async def test_a_query_is_our_own_until_it_is_answered() -> None:
    sent_queries = SentQueries()
    own: list[tuple[bool, bool, bool]] = []

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((HOST, 0))
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(query_udp(sock.getsockname(), QUERY, QUESTION, sent_queries))
        query, client = await loop.sock_recvfrom(sock, 4096)
        number = int.from_bytes(query[:2])
        own.append(
            (
                sent_queries.includes(client[1], number),
                sent_queries.includes(client[1], number ^ 1),
                sent_queries.includes(client[1] ^ 1, number),
            )
        )
        sock.sendto(answer(query), client)
        await waiting
    assert own == [(True, False, False)]
    assert not sent_queries.includes(client[1], number)


async def test_a_cancelled_query_is_not_our_own_any_more() -> None:
    sent_queries = SentQueries()
    async with udp_server(lambda _query: []) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await query_udp(server, QUERY, QUESTION, sent_queries)
    assert sent_queries._pending == set()


async def test_errors() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind((HOST, 0))
        address = closed.getsockname()
    for query in (query_udp, query_tcp):
        with pytest.raises(ConnectionRefusedError):
            await query(address, QUERY, QUESTION, SentQueries())
    for replies in ([], [b"x"] * 100):
        async with tcp_server(lambda _query, replies=replies: replies) as server:  # type: ignore[misc]
            with pytest.raises(EOFError):
                await query_tcp(server, QUERY, QUESTION, SentQueries())


@on_both_loops
async def test_an_answer_that_arrives_while_the_loop_is_busy_is_taken_after_its_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(20)
        queries = [query_udp(server.getsockname(), QUERY, QUESTION, SentQueries()) for _ in range(50)]
        pending = [asyncio.create_task(answer_within(0.1, query)) for query in queries]
        for _ in range(5):
            await asyncio.sleep(0)
        for _ in pending:
            query, client = server.recvfrom(4096)
            server.sendto(answer(query), client)
        # The loop is busy for longer than an answer may take.
        time.sleep(0.3)  # noqa: ASYNC251
        assert [len(data) for data in await asyncio.gather(*pending)] == [len(answer(QUERY))] * 50


async def test_a_server_that_is_silent_for_too_long() -> None:
    sent = SentQueries()
    async with udp_server(lambda _query: []) as server:
        with pytest.raises(TimeoutError):
            await answer_within(0.02, query_udp(server, QUERY, QUESTION, sent))
        await asyncio.sleep(0)
    assert not sent._pending
