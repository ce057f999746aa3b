"""Whose sockets the kernel gives the queries, if two servers share a port."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.coredns.port_sharing import PortSharing
from kumadp.dns.message import encode_query, encode_status_query
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
QUERY = encode_query("backend.mesh", number=1)
HEALTH_CHECKS = (encode_query(HEALTH_NAME, number=2, recursion=False), encode_status_query(3))


class Server:
    """One of the servers on a port, by its UDP and TCP sockets."""

    def __init__(self, port: int) -> None:
        self.udp, self.tcp = (_bound(kind, port) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        self.tcp.listen()

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def _bound(kind: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    return sock


class Shared:
    """A port with CoreDNS's sockets and those of the fallback."""

    def __init__(self, *, fallback_first: bool) -> None:
        self.port = free_port()
        first, second = Server(self.port), Server(self.port)
        self.fallback, self.coredns = (first, second) if fallback_first else (second, first)
        self.sharing = PortSharing()
        self.sharing.add(HOST, self.fallback.udp, self.fallback.tcp, first=fallback_first)

    def end_coredns(self) -> None:
        self.coredns.close()
        self.sharing.coredns_ended()

    def start_coredns(self) -> None:
        self.coredns = Server(self.port)

    def receiver(self, message: bytes) -> str:
        """Return who gets this message by UDP, from a new client each time."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((HOST, self.port))
            client.send(message)
            ready, _, _ = select.select([self.coredns.udp, self.fallback.udp], [], [], 5)
            (sock,) = ready
            assert sock.recv(512) == message
        return "coredns" if sock is self.coredns.udp else "fallback"

    def acceptor(self) -> str:
        """Return who gets a connection."""
        with socket.create_connection((HOST, self.port), timeout=5):
            ready, _, _ = select.select([self.coredns.tcp, self.fallback.tcp], [], [], 5)
            (sock,) = ready
            sock.accept()[0].close()
        return "coredns" if sock is self.coredns.tcp else "fallback"

    def close(self) -> None:
        self.coredns.close()
        self.fallback.close()


@pytest.fixture(params=[True, False], ids=["fallback first", "CoreDNS first"])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    with contextlib.closing(Shared(fallback_first=request.param)) as servers:
        yield servers


def receivers(shared: Shared, *messages: bytes) -> set[str]:
    return {shared.receiver(message) for message in messages for _ in range(20)}


def acceptors(shared: Shared) -> set[str]:
    return {shared.acceptor() for _ in range(20)}


def test_coredns_gets_everything_at_first(shared: Shared) -> None:
    assert shared.sharing.hosts == {HOST}
    assert receivers(shared, QUERY, *HEALTH_CHECKS) == acceptors(shared) == {"coredns"}


def test_the_fallback_gets_everything_but_health_checks_by_udp(shared: Shared) -> None:
    shared.sharing.prefer_fallback()
    assert receivers(shared, QUERY) == acceptors(shared) == {"fallback"}
    assert receivers(shared, *HEALTH_CHECKS) == {"coredns"}
    shared.sharing.prefer_coredns()
    assert receivers(shared, QUERY, *HEALTH_CHECKS) == acceptors(shared) == {"coredns"}


def test_the_fallback_alone_gets_everything(shared: Shared) -> None:
    shared.end_coredns()
    # On another port, so that its sockets can be polled.
    shared.coredns = Server(free_port())
    assert receivers(shared, QUERY, *HEALTH_CHECKS) == acceptors(shared) == {"fallback"}


def test_the_next_coredns_gets_health_checks_only_until_it_is_preferred(shared: Shared) -> None:
    shared.end_coredns()
    shared.start_coredns()
    assert receivers(shared, QUERY) == acceptors(shared) == {"fallback"}
    assert receivers(shared, *HEALTH_CHECKS) == {"coredns"}
    shared.sharing.prefer_coredns()
    assert receivers(shared, QUERY, *HEALTH_CHECKS) == acceptors(shared) == {"coredns"}
