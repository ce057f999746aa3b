"""Addresses of a host, by the system's resolver, and a connection to one of them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import address_text, connect_address, is_ip, socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence

# After how long the next address of a host is tried beside those before it (seconds; RFC 8305, section 5).
NEXT_ADDRESS_AFTER = 0.25
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY})
_CONNECTED = frozenset({0, errno.EISCONN})


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
    async with asyncio.timeout(within):
        return await connect_new(address, port)


def _close(task: asyncio.Task[socket.socket]) -> None:
    """Close a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def connect_new(host: str, port: int) -> socket.socket:
    """Return a non-blocking TCP socket that is connected to a numeric address. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return await connect(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), host, port)


async def connect(sock: socket.socket, host: str, port: int) -> socket.socket:
    """Connect a non-blocking socket to a numeric address, and return it; if that fails it is closed. Raises OSError.

    uvloop's ``sock_connect`` resolves each address in a thread, a numeric one too.
    """
    try:
        address = socket_address(host, port)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            # On this host it is connected by now, which a further call reports (Linux, inet_stream_connect).
            code = sock.connect_ex(address)
        while code in _UNDER_WAY:
            await _writable(sock)
            code = sock.connect_ex(address)
        if code not in _CONNECTED:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _set, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
