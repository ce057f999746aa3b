"""Sockets that listen on this host, from the kernel (sock_diag(7)).

/proc/net/tcp has them too, but the kernel walks over its table of all connections for each read of that file.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import sys
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 1 << 10
_HEADER = struct.Struct("=IHHII")
# inet_diag_req_v2: family, protocol, extensions, padding, states; then inet_diag_sockid: ports, addresses, and the
# interface and a cookie.
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("!HH16s16s")
_ANY_INTERFACE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
# inet_diag_msg: family, 3 bytes, inet_diag_sockid (48 bytes), expires, rqueue, wqueue, uid, inode.
_OWNER = struct.Struct("=II")
_ID_AT, _OWNER_AT, _MESSAGE_SIZE = 4, 64, 72
_RECEIVE_SIZE = 1 << 16


class ListeningSocket(Struct, frozen=True):
    """A listening TCP socket: the address it is bound to, its user id, its inode."""

    host: str
    port: int
    uid: int
    inode: int


class SockDiag:
    """A connection to the kernel's socket diagnosis. Neither method blocks; for one thread at a time.

    The constructor raises OSError if this kernel, or a filter of system calls, has none.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def listener(self, host: str, port: int) -> ListeningSocket | None:
        """Return the socket that would accept a connection to an IP address, by the kernel's own rules, None if none.

        Raises OSError.
        """
        family = _family(host)
        number = self._send(family, _NLM_F_REQUEST, port, socket.inet_pton(family, host))
        for message in self._messages(number):
            return _parse(message)
        return None

    def listeners(self, port: int) -> list[ListeningSocket]:
        """Return all sockets that listen on a port, of IPv4 and IPv6. Raises OSError."""
        result: list[ListeningSocket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            number = self._send(family, _NLM_F_REQUEST | _NLM_F_DUMP, port, b"")
            # A kernel without the filter by port (Linux 4.1) sends all.
            result += [row for row in map(_parse, self._messages(number, dump=True)) if row.port == port]
        return result

    def _send(self, family: int, flags: int, port: int, address: bytes) -> int:
        number = next(self._numbers) & 0xFFFFFFFF
        body = (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
            + _SOCKET_ID.pack(port, 0, address, b"")
            + _ANY_INTERFACE
        )
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, number, 0) + body)
        return number

    def _messages(self, number: int, *, dump: bool = False) -> Iterator[bytes]:
        """Yield the messages that answer a request; the kernel has them ready when the request was sent."""
        while True:
            data = self._socket.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)
            start = 0
            while len(data) - start >= _HEADER.size:
                size, kind, _, answered, _ = _HEADER.unpack_from(data, start)
                message = data[start + _HEADER.size : start + size]
                start += max(_HEADER.size, size + 3 & ~3)
                if answered != number:
                    # Of a request whose answer was not read to its end.
                    continue
                if kind == _NLMSG_ERROR:
                    code = -int.from_bytes(message[:4], sys.byteorder, signed=True)
                    if code in {0, errno.ENOENT}:
                        return
                    raise OSError(code, "sock_diag failed")
                if kind == _NLMSG_DONE:
                    return
                if len(message) >= _MESSAGE_SIZE:
                    yield message
                if not dump:
                    return


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _parse(message: bytes) -> ListeningSocket:
    family = message[0]
    port, _, source, _ = _SOCKET_ID.unpack_from(message, _ID_AT)
    uid, inode = _OWNER.unpack_from(message, _OWNER_AT)
    host = socket.inet_ntop(family, source if family == socket.AF_INET6 else source[:4])
    return ListeningSocket(host, port, uid, inode)
