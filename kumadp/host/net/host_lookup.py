"""Addresses of a host, by the system's resolver, and a connection to one of them."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import address_text, connect_address, is_ip

if TYPE_CHECKING:
    from collections.abc import Sequence

# After how long the next address of a host is tried beside those before it (seconds; RFC 8305, section 5).
NEXT_ADDRESS_AFTER = 0.25


async def numeric_addresses(host: str, port: int) -> list[str]:
    """Return the IP addresses of ``host`` with their zones, in the resolver's order, each once. No deadline.

    Raises OSError, and UnicodeError for what is no host name.
    """
    if is_ip(host):
        # uvloop's getaddrinfo drops the zone of an address.
        return [connect_address(host, port)[0]]
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(address_text(info[4]) for info in infos))


async def connect_any(addresses: Sequence[str], port: int, within: float) -> socket.socket:
    """Return a connection to the first of these IP addresses that accepts one; each has ``within`` seconds.

    The next one is tried after a failure, or after `NEXT_ADDRESS_AFTER`, beside those before it. Raises the last
    OSError if all fail, TimeoutError among them.
    """
    failure: OSError = TimeoutError("no address")
    waiting, pending = list(addresses), set[asyncio.Task[socket.socket]]()
    try:
        while waiting or pending:
            if waiting:
                pending.add(asyncio.create_task(_connect(waiting.pop(0), port, within)))
            done, pending = await asyncio.wait(
                pending, timeout=NEXT_ADDRESS_AFTER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    pending |= done - {task}
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                failure = error
        raise failure
    finally:
        for task in pending:
            task.cancel()
            task.add_done_callback(_close)


async def _connect(address: str, port: int, within: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(within):
            await asyncio.get_running_loop().sock_connect(sock, connect_address(address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _close(task: asyncio.Task[socket.socket]) -> None:
    """Close a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
