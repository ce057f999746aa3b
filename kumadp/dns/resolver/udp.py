"""A UDP socket that is read in bursts, and whose answers leave from the address that was asked.

No asyncio transport: it costs more than the answer does.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Protocol

from kumadp.addresses import WILDCARDS
from kumadp.dns.resolver.answer import quick
from kumadp.dns.resolver.counters import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.dns.resolver.counters import Counters
    from kumadp.dns.resolver.table import Table

# Then other parts of the program have their turn; what is left wakes us again.
BURST = 64
_LARGEST = 4096
_SHORT = BOUNDS[0]
# Room for what comes while the loop is busy with something else, or one program follows another (bytes); the kernel's
# own bound is lower, and counts for all but those with CAP_NET_ADMIN (socket(7)).
_BUFFER = 1 << 20
_SO_RCVBUFFORCE = 33
_ANCILLARY = socket.CMSG_SPACE(20)
# Linux: socket.IP_PKTINFO is not in Python 3.11. index, the address to answer from, the one in the packet.
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_LINK_LOCAL = b"\xfe\x80"


Client = tuple[Any, ...]
"""Host, port, and for IPv6 flow and interface."""


class Answering(Protocol):
    """Who answers."""

    table: Table
    counters: Counters

    def answer_udp(self, data: bytes, client: Client, reply: Callable[[bytes], object]) -> None:
        """Answer what is not answered quickly, now or later."""


class UdpSocket:
    """Reads queries from a bound socket and has them answered."""

    def __init__(self, sock: socket.socket, answering: Answering) -> None:
        self.socket = sock
        self._answering = answering
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._wildcard = sock.getsockname()[0] in WILDCARDS
        if self._wildcard and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._wildcard:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def open(self) -> None:
        """Answer from now on."""
        burst = self._burst_on_all if self._wildcard else self._burst
        asyncio.get_running_loop().add_reader(self.socket.fileno(), burst)

    def stop(self) -> None:
        """Answer what waits, and hear no more."""
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        (self._burst_on_all if self._wildcard else self._burst)()

    def close(self) -> None:
        """Answer no more."""
        self.socket.close()

    def _burst(self) -> None:
        receive, send = self.socket.recvfrom, self.socket.sendto
        table, counters = self._answering.table, self._answering.counters
        since = time.perf_counter()
        try:
            for _ in range(BURST):
                data, client = receive(_LARGEST)
                reply = quick(data, table)
                if reply is None:
                    later = functools.partial(self._send, client)
                    self._answering.answer_udp(data, client, later)
                    continue
                if data[-14 if data[11] else -3] == 1:
                    counters.quick_a += 1
                else:
                    counters.quick_aaaa += 1
                send(reply, client)
        except BlockingIOError:
            pass
        except OSError:
            counters.dropped += 1
        took = time.perf_counter() - since
        counters.quick_seconds += took
        if took > _SHORT:
            counters.note_slow(took)

    def _send(self, client: Any, reply: bytes) -> None:
        try:
            self.socket.sendto(reply, client)
        except OSError:
            self._answering.counters.dropped += 1

    def _burst_on_all(self) -> None:
        """The same, with the address that was asked."""
        receive, send = self.socket.recvmsg, self.socket.sendmsg
        table, counters = self._answering.table, self._answering.counters
        since = time.perf_counter()
        try:
            for _ in range(BURST):
                data, ancillary, _flags, client = receive(_LARGEST, _ANCILLARY)
                origin = _origin(ancillary)
                reply = quick(data, table)
                if reply is None:
                    later = functools.partial(self._send_from, client, origin)
                    self._answering.answer_udp(data, client, later)
                    continue
                if data[-14 if data[11] else -3] == 1:
                    counters.quick_a += 1
                else:
                    counters.quick_aaaa += 1
                send((reply,), origin, 0, client)
        except BlockingIOError:
            pass
        except OSError:
            counters.dropped += 1
        took = time.perf_counter() - since
        counters.quick_seconds += took
        if took > _SHORT:
            counters.note_slow(took)

    def _send_from(self, client: Any, origin: list[tuple[int, int, bytes]], reply: bytes) -> None:
        try:
            self.socket.sendmsg((reply,), origin, 0, client)
        except OSError:
            self._answering.counters.dropped += 1


def _origin(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """What has the kernel send from the address that was asked; the interface stays open, but for link-local ones."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) == _PKTINFO.size:
            _, address, _ = _PKTINFO.unpack(data)
            return [(level, kind, _PKTINFO.pack(0, address, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) == _PKTINFO6.size:
            address, index = _PKTINFO6.unpack(data)
            return [(level, kind, _PKTINFO6.pack(address, index if address[:2] == _LINK_LOCAL else 0))]
    return []
