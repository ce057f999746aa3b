"""A UDP socket that is read in bursts, and whose answers leave from the address that was queried.

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
from kumadp.dns.resolver.answer import fast_answer
from kumadp.dns.resolver.counters import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.dns.resolver.counters import Counters
    from kumadp.dns.resolver.table import Table

# Then other tasks have their turn; packets that are left wake us again.
BURST = 64
_LARGEST = 4096
_SHORT = BOUNDS[0]
# Room for packets that arrive while the loop is busy, or while one program follows another (bytes). The kernel's own
# limit is lower, and applies to all processes without CAP_NET_ADMIN (socket(7)).
_BUFFER = 1 << 20
_SO_RCVBUFFORCE = 33
_ANCILLARY = socket.CMSG_SPACE(20)
# Linux: socket.IP_PKTINFO is not in Python 3.11. Interface, the address to answer from, the one in the packet.
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_LINK_LOCAL = b"\xfe\x80"


Client = tuple[Any, ...]
"""Host, port, and for IPv6 flow and interface."""
_Ancillary = list[tuple[int, int, bytes]]


class QueryHandler(Protocol):
    """Answers queries."""

    table: Table
    counters: Counters

    def answer_udp(self, data: bytes, client: Client, reply: Callable[[bytes], object]) -> None:
        """Answer a query that `fast_answer` does not, now or later."""


class UdpSocket:
    """Reads queries from a bound socket and has them answered by ``handler``."""

    def __init__(self, sock: socket.socket, handler: QueryHandler) -> None:
        self.socket = sock
        self._handler = handler
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._is_wildcard = sock.getsockname()[0] in WILDCARDS
        if self._is_wildcard and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._is_wildcard:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def open(self) -> None:
        """Answer from now on."""
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._burst)

    def stop(self) -> None:
        """Answer the queries that have arrived, and read no more."""
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self._burst()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _burst(self) -> None:
        """Answer the queries that have arrived, at most `BURST`.

        A peer is the client, and on a wildcard address the client and the ancillary data with the queried address.
        """
        receive: Callable[[int], tuple[bytes, Any]] = self.socket.recvfrom
        send: Callable[[bytes, Any], object] = self.socket.sendto
        if self._is_wildcard:
            receive, send = self._receive_with_origin, self._send_from_origin
        table, counters = self._handler.table, self._handler.counters
        cached, fast_a, fast_aaaa = table.cache, 0, 0
        since = time.perf_counter()
        try:
            for _ in range(BURST):
                data, peer = receive(_LARGEST)
                # Here, not in `fast_answer`: the call would cost a tenth of an answer.
                answer = cached.get(data[2:])
                reply = data[:2] + answer if answer is not None else fast_answer(data, table)
                if reply is None:
                    client = peer[0] if self._is_wildcard else peer
                    self._handler.answer_udp(data, client, functools.partial(self._send_later, send, peer))
                    continue
                if data[-14 if data[11] else -3] == 1:
                    fast_a += 1
                else:
                    fast_aaaa += 1
                send(reply, peer)
        except BlockingIOError:
            pass
        except OSError:
            counters.dropped += 1
        counters.fast_a += fast_a
        counters.fast_aaaa += fast_aaaa
        seconds = time.perf_counter() - since
        counters.fast_seconds += seconds
        if seconds > _SHORT:
            counters.note_slow(seconds)

    def _send_later(self, send: Callable[[bytes, Any], object], peer: Any, reply: bytes) -> None:
        try:
            send(reply, peer)
        except OSError:
            self._handler.counters.dropped += 1

    def _receive_with_origin(self, size: int) -> tuple[bytes, tuple[Client, _Ancillary]]:
        data, ancillary, _flags, client = self.socket.recvmsg(size, _ANCILLARY)
        return data, (client, _origin(ancillary))

    def _send_from_origin(self, reply: bytes, peer: tuple[Client, _Ancillary]) -> None:
        client, origin = peer
        self.socket.sendmsg((reply,), origin, 0, client)


def _origin(ancillary: _Ancillary) -> _Ancillary:
    """Return ancillary data that makes the kernel send from the queried address.

    The interface is left to the routing table, except for link-local addresses.
    """
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) == _PKTINFO.size:
            _, address, _ = _PKTINFO.unpack(data)
            return [(level, kind, _PKTINFO.pack(0, address, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) == _PKTINFO6.size:
            address, index = _PKTINFO6.unpack(data)
            return [(level, kind, _PKTINFO6.pack(address, index if address[:2] == _LINK_LOCAL else 0))]
    return []
