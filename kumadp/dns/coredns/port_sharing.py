"""Decides which of two servers on a shared port (SO_REUSEPORT) gets the queries: CoreDNS, or the fallback resolver.

The kernel keeps the sockets of an address in the order in which they were bound, and moves the last one into the place
of one that is closed. A BPF program (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) returns the index of the socket. If no socket
has that index, the kernel chooses itself, so that a server that is alone gets all queries.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import wire_name

if TYPE_CHECKING:
    import socket

_SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF = 1, 51
# linux/filter.h: code, jump if true, jump if false, operand.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_WORD, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
# As the third byte of a message.
_STATUS = 2 << 3
_NAME = wire_name(HEALTH_NAME)[:12]


class _Shared(Struct):
    """The fallback's sockets on one address; ``first``: they were bound before those of CoreDNS."""

    udp: socket.socket
    tcp: socket.socket
    first: bool


class PortSharing:
    """The fallback's sockets, by their address, and whether CoreDNS or they get the queries."""

    def __init__(self) -> None:
        self._shared: dict[str, _Shared] = {}
        self._to_coredns = True

    @property
    def hosts(self) -> frozenset[str]:
        """The addresses of the fallback's sockets."""
        return frozenset(self._shared)

    def add(self, host: str, udp: socket.socket, tcp: socket.socket, *, first: bool) -> None:
        """Add sockets of the fallback; ``first``: CoreDNS has none on that address yet. Raises OSError."""
        self._shared[host] = _Shared(udp, tcp, first)
        self._attach(self._shared[host])

    def coredns_ended(self) -> None:
        """Prefer the fallback; the sockets of the next CoreDNS will be bound after those of the fallback."""
        for shared in self._shared.values():
            shared.first = True
        self.prefer_fallback()

    def clear(self) -> None:
        """Forget the sockets, which are closed."""
        self._shared.clear()

    def prefer_coredns(self) -> None:
        """Send all queries to CoreDNS."""
        self._to_coredns = True
        for shared in self._shared.values():
            self._attach(shared)

    def prefer_fallback(self) -> None:
        """Send all queries to the fallback, except kumadp's own health checks by UDP, which go to CoreDNS."""
        self._to_coredns = False
        for shared in self._shared.values():
            self._attach(shared)

    def _attach(self, shared: _Shared) -> None:
        coredns = int(shared.first)
        if self._to_coredns:
            programs = [_all_to(coredns)] * 2
        else:
            programs = [_health_checks_to(coredns, others=1 - coredns), _all_to(1 - coredns)]
        for sock, program in zip((shared.udp, shared.tcp), programs, strict=True):
            _attach_program(sock, program)


def _all_to(index: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, index)


def _health_checks_to(index: int, *, others: int) -> bytes:
    """Return a program that sends the queries of `kumadp.dns.coredns.health_check` to socket ``index``.

    All other packets go to socket ``others``; a packet that is too short for a load goes to socket 0.
    """
    words = struct.unpack("!3I", _NAME)
    return b"".join(
        (
            # Nobody else sends queries with an opcode other than QUERY.
            _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, 2),
            _INSTRUCTION.pack(_IF_EQUAL, 6, 0, _STATUS),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 12),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 5, words[0]),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 16),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 3, words[1]),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 20),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 1, words[2]),
            _INSTRUCTION.pack(_RETURN, 0, 0, index),
            _INSTRUCTION.pack(_RETURN, 0, 0, others),
        )
    )


def _attach_program(sock: socket.socket, program: bytes) -> None:
    """Attach a program; raises OSError if the kernel does not support it."""
    instructions = ctypes.create_string_buffer(program, len(program))
    option = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(instructions))
    sock.setsockopt(_SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, option)
