"""Addresses of a host, by the system's resolver."""

from __future__ import annotations

import asyncio
import socket

from kumadp.addresses import address_text, connect_address, is_ip


async def numeric_addresses(host: str, port: int) -> list[str]:
    """Return the IP addresses of ``host`` with their zones, in the resolver's order, each once. No deadline.

    Raises OSError, and UnicodeError for what is no host name.
    """
    if is_ip(host):
        # uvloop's getaddrinfo drops the zone of an address.
        return [connect_address(host, port)[0]]
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(address_text(info[4]) for info in infos))
