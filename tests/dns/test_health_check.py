"""The health check of a name server, against servers that answer, answer something else, or do not answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

import dns.message
import dns.opcode
import dns.rcode
import pytest

from kumadp.dns.coredns.health_check import missing_transports
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "127.0.0.1"
NAME = "health.kumadp.invalid"


def answer(query: dns.message.Message, code: dns.rcode.Rcode = dns.rcode.REFUSED) -> bytes:
    response = dns.message.make_response(query)
    response.set_rcode(code)
    return response.to_wire()


class Server(asyncio.DatagramProtocol):
    """Sends what ``replies`` returns for a query, by UDP; keeps the queries."""

    def __init__(self, replies: Callable[[dns.message.Message], list[bytes]]) -> None:
        self.replies = replies
        self.queries: list[dns.message.Message] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def reply(self, data: bytes) -> list[bytes]:
        self.queries.append(dns.message.from_wire(data))
        return self.replies(self.queries[-1])

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for message in self.reply(data):
            self.transport.sendto(message, addr)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError):
            for message in self.reply(await reader.readexactly(int.from_bytes(await reader.readexactly(2)))):
                writer.write(len(message).to_bytes(2) + message)
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    replies: Callable[[dns.message.Message], list[bytes]], *, udp: bool = True, tcp: bool = True
) -> AsyncIterator[tuple[int, Server]]:
    port, server = free_port(), Server(replies)
    async with contextlib.AsyncExitStack() as stack:
        if udp:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(lambda: server, (HOST, port))
            stack.callback(transport.close)
        if tcp:
            listener = await asyncio.start_server(server.connected, HOST, port)
            stack.callback(listener.close)
        yield port, server


@pytest.mark.parametrize("code", [dns.rcode.NOERROR, dns.rcode.REFUSED, dns.rcode.SERVFAIL, dns.rcode.NOTIMP])
@pytest.mark.parametrize("name", ["", NAME])
async def test_any_code_is_an_answer(name: str, code: dns.rcode.Rcode) -> None:
    async with serving(lambda query: [answer(query, code)]) as (port, server):
        assert await missing_transports(port, name, deadline=5.0) == ""
    assert len(server.queries) == 2
    for query in server.queries:
        assert [str(question) for question in query.question] == ([f"{name}. IN A"] if name else [])
        assert query.opcode() == (dns.opcode.QUERY if name else dns.opcode.STATUS)
        assert query.flags == (0 if name else dns.opcode.STATUS << 11)


@pytest.mark.parametrize(
    ("udp", "tcp", "missing"), [(True, False, "TCP"), (False, True, "UDP"), (False, False, "UDP and TCP")]
)
async def test_a_closed_port_is_missing(udp: bool, tcp: bool, missing: str) -> None:
    async with serving(lambda query: [answer(query)], udp=udp, tcp=tcp) as (port, _):
        assert await missing_transports(port, NAME, deadline=5.0) == missing


async def test_a_silent_server_is_missing_after_the_deadline() -> None:
    async with serving(lambda _query: []) as (port, _):
        assert await missing_transports(port, NAME, deadline=0.1) == "UDP and TCP"


def wrong_answers(query: dns.message.Message) -> list[bytes]:
    """Return an answer with another number, one to another name, the query itself, and one that is too short."""
    right = answer(query)
    other = dns.message.make_query("other.example", "A", id=query.id)
    return [bytes([right[0] ^ 1]) + right[1:], answer(other), query.to_wire(), right[:11]]


async def test_wrong_answers_are_no_answers() -> None:
    async with serving(wrong_answers) as (port, _):
        assert await missing_transports(port, NAME, deadline=0.3) == "UDP and TCP"


async def test_wrong_answers_by_udp_do_not_hide_the_right_one() -> None:
    async with serving(lambda query: [*wrong_answers(query), answer(query)]) as (port, _):
        # By TCP nobody but the server can answer, and only its first message counts.
        assert await missing_transports(port, NAME, deadline=5.0) == "TCP"


async def test_an_answer_may_have_another_letter_case_or_no_question() -> None:
    for changed in (
        lambda wire: wire.replace(b"health", b"HEALTH"),
        lambda wire: wire[:4] + b"\0\0" + wire[6:12],
    ):
        async with serving(lambda query, changed=changed: [changed(answer(query))]) as (port, _):  # type: ignore[misc]
            assert await missing_transports(port, NAME, deadline=5.0) == ""
