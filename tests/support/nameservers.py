"""Name servers on loopback that know some names and record the queries they get."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from kumadp.dns.coredns.port_sharing import PortSharing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


# Not in Python's socket module (linux: asm-generic/socket.h).
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 1 << 20


@dataclass
class NameServer:
    """A name server with A records only.

    ``exact``: as Envoy's DNS filter, which compares case and answers NXDOMAIN to the AAAA of a name that it knows.
    ``silent``: it records queries and answers none.
    """

    port: int
    addresses: Mapping[str, str]
    exact: bool = False
    silent: bool = False
    queries: list[str] = field(default_factory=list)
    _answers: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)

    def answer(self, wire: bytes) -> bytes | None:
        """The answer to a query, None for silence."""
        if wire[2:] not in self._answers:
            # Without the number of the query, so that it is made once.
            self._answers[wire[2:]] = self._make(b"\0\0" + wire[2:])
        name, answer = self._answers[wire[2:]]
        self.queries.append(name)
        return None if self.silent else wire[:2] + answer[2:]

    def _make(self, wire: bytes) -> tuple[str, bytes]:
        query = dns.message.from_wire(wire)
        answer = dns.message.make_response(query)
        if not query.question:
            # A status query, with which kumadp checks whether a server is there.
            answer.set_rcode(dns.rcode.NOTIMP)
            return "", answer.to_wire()
        question = query.question[0]
        name = question.name.to_text().rstrip(".")
        address = self.addresses.get(name if self.exact else name.lower())
        if address is None or (self.exact and question.rdtype != dns.rdatatype.A):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(question.name, 30, "IN", "A", address))
        return name, answer.to_wire()

    def queries_below(self, suffix: str) -> list[str]:
        """Return the queried names with this suffix, whatever their case."""
        return [name for name in self.queries if name.lower().endswith(suffix)]


@contextlib.contextmanager
def name_server(
    port: int, addresses: Mapping[str, str], *, exact: bool = False, silent: bool = False, tcp: bool = False
) -> Iterator[NameServer]:
    """Serve over UDP, with ``tcp`` over TCP too."""
    served = NameServer(port, addresses, exact, silent)
    with contextlib.ExitStack() as stack:
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", port))
        _enlarge_buffer(udp)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(udp, selectors.EVENT_READ)
        if tcp:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            selector.register(listener, selectors.EVENT_READ)
        wake, woken = socket.socketpair()
        stack.enter_context(wake)
        stack.enter_context(woken)
        selector.register(woken, selectors.EVENT_READ)

        def serve() -> None:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is woken:
                        return
                    with contextlib.suppress(OSError):
                        _serve_udp(served, udp) if key.fileobj is udp else _serve_tcp(served, listener)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            wake.send(b"!")
            thread.join(10)


def _enlarge_buffer(sock: socket.socket) -> None:
    """Give the socket kumadp's own receive buffer (`kumadp.dns.resolver.udp`).

    The default one (about 280 packets) loses queries if this process does not run for 140 ms at 2,000 queries a second.
    """
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _serve_udp(served: NameServer, udp: socket.socket) -> None:
    wire, peer = udp.recvfrom(4096)
    if (answer := served.answer(wire)) is not None:
        udp.sendto(answer, peer)


def _serve_tcp(served: NameServer, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(2)
        length = int.from_bytes(connection.recv(2))
        if length and (answer := served.answer(connection.recv(length))) is not None:
            connection.sendall(len(answer).to_bytes(2) + answer)


class SharedPort:
    """A fallback for CoreDNS that knows some names."""

    def __init__(self, port: int, addresses: Mapping[str, str]) -> None:
        self._server = NameServer(port, addresses)
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self.port_sharing = PortSharing()

    @property
    def queries(self) -> list[str]:
        """Return the queried names, without those of health checks."""
        return [name for name in self._server.queries if name and not name.startswith("health.")]

    @property
    def is_open(self) -> bool:
        """Whether it has the port."""
        return bool(self._sockets)

    async def open(self, coredns: Collection[str], also: Collection[str] = ()) -> None:
        """Serve on all addresses."""
        loop = asyncio.get_running_loop()
        for host in sorted({"::", *coredns, *also} - self.port_sharing.hosts):
            sockets = []
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                shared = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
                shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                shared.setblocking(False)
                shared.bind((host, self._server.port))
                _enlarge_buffer(shared)
                sockets.append(shared)
            udp, listener = sockets
            loop.add_reader(udp, self._drain, udp)
            self._servers.append(await asyncio.start_server(self._connected, sock=listener))
            self._sockets.append(udp)
            self.port_sharing.add(host, udp, listener, first=host not in coredns)

    async def close(self) -> None:
        """Answer what has come and serve no more."""
        self.port_sharing.clear()
        for server in self._servers:
            server.close()
        for udp in self._sockets:
            asyncio.get_running_loop().remove_reader(udp)
            self._drain(udp)
            udp.close()
        self._servers.clear()
        self._sockets.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, OSError):
            wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            answer = self._server.answer(wire) or b""
            writer.write(len(answer).to_bytes(2) + answer)
        writer.close()

    def _drain(self, udp: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                _serve_udp(self._server, udp)
