"""Name servers on loopback that know some names and remember what they were asked."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass
class NameServer:
    """Knows A records alone; ``exact``: as Envoy's DNS filter, which compares case and says NXDOMAIN to the AAAA of a
    name that it knows. ``silent``: hears everything and says nothing.
    """

    port: int
    known: Mapping[str, str]
    exact: bool = False
    silent: bool = False
    refuses: bool = False
    asked: list[str] = field(default_factory=list)

    def answer(self, wire: bytes) -> bytes | None:
        """The answer to a query, None for silence."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text().rstrip(".")
        self.asked.append(name)
        if self.silent:
            return None
        answer = dns.message.make_response(query)
        address = self.known.get(name if self.exact else name.lower())
        if self.refuses:
            answer.set_rcode(dns.rcode.REFUSED)
        elif address is None or (self.exact and question.rdtype != dns.rdatatype.A):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(question.name, 30, "IN", "A", address))
        return answer.to_wire()

    def asked_below(self, suffix: str) -> list[str]:
        """What it was asked of the names that end so, in any case."""
        return [name for name in self.asked if name.lower().endswith(suffix)]


@contextlib.contextmanager
def name_server(
    port: int, known: Mapping[str, str], *, exact: bool = False, silent: bool = False, tcp: bool = False
) -> Iterator[NameServer]:
    """Serve by UDP, and by TCP where asked for."""
    served = NameServer(port, known, exact, silent)
    with contextlib.ExitStack() as stack:
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", port))
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
