"""Which of two servers that share a port (SO_REUSEPORT) gets what comes there: CoreDNS, or the stand-in.

The kernel has the sockets of an address in the order in which they were bound, and puts the last one in the place of
one that is closed; a program of ours (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) names the place. A place where nobody is
leaves the choice among the others, so that whoever is alone has all.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import wire_name

if TYPE_CHECKING:
    import socket

_SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF = 1, 51
# linux/filter.h: code, where to go on if so, where if not, operand.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_WORD, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_STATUS = 2 << 3
_NAME = wire_name(HEALTH_NAME)[:12]


@dataclass
class _Shared:
    """Our sockets on one address; ``first``: they were bound before those of CoreDNS."""

    udp: socket.socket
    tcp: socket.socket
    first: bool


class PortSharing:
    """The stand-in's sockets, by their hosts."""

    def __init__(self) -> None:
        self._shared: dict[str, _Shared] = {}
        self._to_coredns = True

    @property
    def hosts(self) -> frozenset[str]:
        """Where the stand-in has sockets."""
        return frozenset(self._shared)

    def add(self, host: str, udp: socket.socket, tcp: socket.socket, *, first: bool) -> None:
        """These are the stand-in's; ``first`` where CoreDNS has none on that address yet."""
        self._shared[host] = _Shared(udp, tcp, first)
        self._steer(self._shared[host])

    def alone(self) -> None:
        """CoreDNS has ended: the next one's sockets come after ours."""
        for shared in self._shared.values():
            shared.first = True
        self.prefer_stand_in()

    def clear(self) -> None:
        """The sockets are closed."""
        self._shared.clear()

    def prefer_coredns(self) -> None:
        """CoreDNS gets all."""
        self._to_coredns = True
        for shared in self._shared.values():
            self._steer(shared)

    def prefer_stand_in(self) -> None:
        """The stand-in gets all but our own questions by UDP whether CoreDNS is well, if they are to reach it."""
        self._to_coredns = False
        for shared in self._shared.values():
            self._steer(shared)

    def _steer(self, shared: _Shared) -> None:
        coredns = int(shared.first)
        if self._to_coredns:
            programs = [_all_to(coredns)] * 2
        else:
            programs = [_questions_to(coredns, others=1 - coredns), _all_to(1 - coredns)]
        for sock, program in zip((shared.udp, shared.tcp), programs, strict=True):
            _attach(sock, program)


def _all_to(place: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, place)


def _questions_to(place: int, *, others: int) -> bytes:
    """Return a program that sends the queries of `kumadp.dns.coredns.health_check` to socket ``place``.

    All other packets go to socket ``others``; a packet that is too short for a load goes to socket 0.
    """
    words = struct.unpack("!3I", _NAME)
    return b"".join(
        (
            # An opcode other than QUERY is for nobody else either.
            _INSTRUCTION.pack(_LOAD_BYTE, 0, 0, 2),
            _INSTRUCTION.pack(_IF_EQUAL, 6, 0, _STATUS),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 12),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 5, words[0]),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 16),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 3, words[1]),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, 20),
            _INSTRUCTION.pack(_IF_EQUAL, 0, 1, words[2]),
            _INSTRUCTION.pack(_RETURN, 0, 0, place),
            _INSTRUCTION.pack(_RETURN, 0, 0, others),
        )
    )


def _attach(sock: socket.socket, program: bytes) -> None:
    """Raises OSError where the kernel has no such programs."""
    instructions = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(instructions))
    sock.setsockopt(_SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, told)
