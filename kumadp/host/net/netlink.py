"""Dumps of kernel tables over netlink(7)."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h.
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_RECEIVE_SIZE = 1 << 16


class Netlink:
    """A connection to the kernel of one ``protocol`` of netlink. Nothing blocks; for one thread at a time.

    The constructor raises OSError if this kernel, or a filter of system calls, has none.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(self, kind: int, body: bytes, *, dump: bool) -> int:
        """Send a request of this kind, return its number; ``dump``: for all entries. Raises OSError."""
        number = next(self._numbers) & 0xFFFFFFFF
        flags = _REQUEST | (_DUMP if dump else 0)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body)
        return number

    def messages(self, number: int, *, dump: bool) -> Iterator[bytes]:
        """Yield the messages that answer a request; the kernel has them ready when the request was sent.

        Raises OSError.
        """
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
                if kind == _ERROR:
                    code = -int.from_bytes(message[:4], sys.byteorder, signed=True)
                    if code in {0, errno.ENOENT}:
                        return
                    raise OSError(code, f"netlink: {os.strerror(code)}")
                if kind == _DONE:
                    return
                yield message
                if not dump:
                    return
