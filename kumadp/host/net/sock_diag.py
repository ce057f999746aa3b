"""Sockets that listen on this host, from the kernel (sock_diag(7)).

/proc/net/tcp has them too, but the kernel walks over its table of all connections for each read of that file.
"""

from __future__ import annotations

import socket
import struct

from msgspec import Struct

from kumadp.host.net.netlink import Netlink

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_LISTEN = 1 << 10
# inet_diag_req_v2: family, protocol, extensions, padding, states; then inet_diag_sockid: ports, addresses, and the
# interface and a cookie.
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("!HH16s16s")
_ANY_INTERFACE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
# inet_diag_msg: family, 3 bytes, inet_diag_sockid (48 bytes), expires, rqueue, wqueue, uid, inode.
_OWNER = struct.Struct("=II")
_ID_AT, _OWNER_AT, _MESSAGE_SIZE = 4, 64, 72


class ListeningSocket(Struct, frozen=True):
    """A TCP socket that listens, or a UDP socket: the address it is bound to, its user id, its inode."""

    host: str
    port: int
    uid: int
    inode: int


class SockDiag:
    """A connection to the kernel's socket diagnosis. Neither method blocks; for one thread at a time.

    The constructor raises OSError if this kernel, or a filter of system calls, has none.
    """

    def __init__(self) -> None:
        self._kernel = Netlink(_NETLINK_SOCK_DIAG)

    def close(self) -> None:
        """Close it."""
        self._kernel.close()

    def listener(self, host: str, port: int) -> ListeningSocket | None:
        """Return the socket that would accept a connection to an IP address, by the kernel's own rules, None if none.

        Raises OSError.
        """
        family = _family(host)
        number = self._send(family, port, socket.inet_pton(family, host), dump=False)
        for message in self._kernel.messages(number, dump=False):
            if len(message) >= _MESSAGE_SIZE:
                return _parse(message)
        return None

    def listeners(self, port: int = 0) -> list[ListeningSocket]:
        """Return all sockets that listen on a port (0: on any), of IPv4 and IPv6. Raises OSError."""
        rows: list[ListeningSocket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            number = self._send(family, port, b"", dump=True)
            messages = self._kernel.messages(number, dump=True)
            rows += [_parse(message) for message in messages if len(message) >= _MESSAGE_SIZE]
        # A kernel without the filter by port (Linux 4.1) sends all.
        return [row for row in rows if not port or row.port == port]

    def _send(self, family: int, port: int, address: bytes, *, dump: bool) -> int:
        body = (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
            + _SOCKET_ID.pack(port, 0, address, b"")
            + _ANY_INTERFACE
        )
        return self._kernel.send(_SOCK_DIAG_BY_FAMILY, body, dump=dump)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _parse(message: bytes) -> ListeningSocket:
    family = message[0]
    port, _, source, _ = _SOCKET_ID.unpack_from(message, _ID_AT)
    uid, inode = _OWNER.unpack_from(message, _OWNER_AT)
    host = socket.inet_ntop(family, source if family == socket.AF_INET6 else source[:4])
    return ListeningSocket(host, port, uid, inode)
