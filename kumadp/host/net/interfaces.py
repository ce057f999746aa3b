"""The addresses of this host's network interfaces, from the kernel (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from kumadp.host.net.netlink import Netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h.
_NETLINK_ROUTE = 0
_GET_ADDRESSES = 22
_ADDRESS, _LOCAL = 1, 2
# ifaddrmsg: family, length of the prefix, flags, scope, index of the interface.
_MESSAGE = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_LINK_LOCAL = "fe80:"


def interface_addresses() -> list[str]:
    """Return every IP address of this host; a link-local one of IPv6 with its zone (RFC 4007). Raises OSError."""
    with contextlib.closing(Netlink(_NETLINK_ROUTE)) as kernel:
        number = kernel.send(_GET_ADDRESSES, _MESSAGE.pack(socket.AF_UNSPEC, 0, 0, 0, 0), dump=True)
        found = {text for message in kernel.messages(number, dump=True) if (text := _address_in(message))}
    return sorted(found)


def local_addresses() -> frozenset[str]:
    """Return every IP address of this host, without zones. Raises OSError."""
    return frozenset(address.partition("%")[0] for address in interface_addresses())


def _address_in(message: bytes) -> str:
    """Return the address of an ``ifaddrmsg``; empty if it has none."""
    if len(message) < _MESSAGE.size:
        return ""
    family, _, _, _, index = _MESSAGE.unpack_from(message)
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family)
    if size is None:
        return ""
    attributes = dict(_attributes(message))
    # Of a point-to-point interface the other one is the peer's.
    packed = attributes.get(_LOCAL) or attributes.get(_ADDRESS, b"")
    if len(packed) != size:
        return ""
    address = socket.inet_ntop(family, packed)
    if not address.startswith(_LINK_LOCAL):
        return address
    try:
        return f"{address}%{socket.if_indextoname(index)}"
    except OSError:
        # The interface has just been removed.
        return ""


def _attributes(message: bytes) -> Iterator[tuple[int, bytes]]:
    start = _MESSAGE.size
    while len(message) - start >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(message, start)
        if size < _ATTRIBUTE.size:
            return
        yield kind, message[start + _ATTRIBUTE.size : start + size]
        start += size + 3 & ~3
