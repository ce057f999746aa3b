"""A UDP socket of the resolver: bursts, answers now and later, and the address that they leave from."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import dns.message
import pytest

from kumadp.dns.resolver.counters import Counters
from kumadp.dns.resolver.table import Table
from kumadp.dns.resolver.udp import BURST, Client, UdpSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN = dns.message.make_query("backend.mesh", "A", use_edns=False).to_wire()
OTHER = dns.message.make_query("backend.mesh", "MX", use_edns=False).to_wire()


class Handler:
    """Keeps the queries that are not answered at once, and how to answer them."""

    def __init__(self) -> None:
        self.table = Table([("backend.mesh", ["240.0.0.1"])], suffixes=("mesh",))
        self.counters = Counters()
        self.waiting: list[tuple[bytes, Client, Callable[[bytes], object]]] = []

    def answer_udp(self, data: bytes, client: Client, reply: Callable[[bytes], object]) -> None:
        self.waiting.append((data, client, reply))


@contextlib.contextmanager
def bound(host: str) -> Iterator[tuple[UdpSocket, Handler, int]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((host, 0))
        handler = Handler()
        yield UdpSocket(sock, handler), handler, sock.getsockname()[1]


@contextlib.contextmanager
def client_of(host: str, port: int) -> Iterator[socket.socket]:
    """Open a connected socket: it gets answers only from the address that it sends to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        client.connect((host, port))
        yield client


@pytest.mark.parametrize(
    ("listen", "query"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1")],
)
async def test_answers_now_and_later_leave_from_the_queried_address(listen: str, query: str) -> None:
    loop = asyncio.get_running_loop()
    with bound(listen) as (udp, handler, port), client_of(query, port) as client:
        udp.open()
        client.send(PLAIN)
        async with asyncio.timeout(10):
            assert (await loop.sock_recv(client, 512))[-4:] == bytes([240, 0, 0, 1])
        client.send(OTHER)
        async with asyncio.timeout(10):
            while not handler.waiting:
                await asyncio.sleep(0.01)
            ((data, peer, reply),) = handler.waiting
            assert data == OTHER
            assert peer[:2] == client.getsockname()[:2]
            reply(b"later")
            assert await loop.sock_recv(client, 512) == b"later"
        loop.remove_reader(udp.socket)
        assert (handler.counters.fast_a, handler.counters.fast_aaaa, handler.counters.dropped) == (1, 0, 0)
        assert handler.counters.fast_seconds > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_one_burst_is_limited_and_the_rest_is_read_later(host: str) -> None:
    with bound(host) as (udp, handler, port), client_of("127.0.0.1", port) as client:
        for _ in range(BURST + 10):
            client.send(PLAIN)
        udp._burst()
        assert handler.counters.fast_a == BURST
        udp._burst()
        assert handler.counters.fast_a == BURST + 10


async def test_stop_answers_the_queries_that_have_arrived() -> None:
    with bound("127.0.0.1") as (udp, handler, port), client_of("127.0.0.1", port) as client:
        udp.open()
        client.send(PLAIN)
        client.send(dns.message.make_query("backend.mesh", "AAAA", use_edns=False).to_wire())
        udp.stop()
        assert (handler.counters.fast_a, handler.counters.fast_aaaa) == (1, 1)
        assert len(client.recv(512)) == len(PLAIN) + 16


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_an_answer_that_cannot_be_sent_is_counted(host: str) -> None:
    with bound(host) as (udp, handler, port), client_of("127.0.0.1", port) as client:
        client.send(OTHER)
        udp._burst()
        ((_, _, reply),) = handler.waiting
        udp.close()
        reply(b"too late")
        assert handler.counters.dropped == 1
