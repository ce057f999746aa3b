"""Checks whether addresses can be bound, and finds the process that holds one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from kumadp.addresses import ANY_IPV4, ANY_IPV6, is_ip, overlap, socket_address, with_port
from kumadp.errors import PortsTaken, Problem
from kumadp.host.net.listening import sockets_in_table
from kumadp.host.reexec import inherited_sockets as inherited

if TYPE_CHECKING:
    from collections.abc import Iterable

TransportProtocol = Literal["tcp", "udp"]
# psutil's word. It is imported only where a process is to be named: it takes 2 MB.
_LISTENS = "LISTEN"


class BindAddress(Struct, frozen=True):
    """An address that will be bound: ``purpose`` for messages, ``path`` is the setting or field that it comes from."""

    host: str
    port: int
    protocol: TransportProtocol
    purpose: str
    path: str


async def check_ports(addresses: Iterable[BindAddress], *, held_by: frozenset[int] = frozenset()) -> None:
    """Raise PortsTaken with every address that cannot be bound now, each with the process that holds it.

    Skips host names, port 0, ports of sockets that were handed over by execve(2), and ports held by our own processes
    ``held_by``.
    """
    problems = await asyncio.to_thread(_problems, list(addresses), held_by)
    if problems:
        raise PortsTaken(problems)


def _problems(addresses: list[BindAddress], held_by: frozenset[int]) -> list[Problem]:
    problems = []
    # Listing them takes long if there are many connections.
    connections = functools.cache(_connections)
    for address in addresses:
        if not address.port or not is_ip(address.host) or inherited.holds(address.protocol, address.port):
            continue
        failure = _try_bind(address)
        if failure is None:
            continue
        holders = _holders(address, connections()) if held_by else []
        if not holders or not held_by.issuperset(holders):
            problems.append(_explain(address, failure))
    return problems


def _try_bind(address: BindAddress) -> OSError | None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    kind = socket.SOCK_STREAM if address.protocol == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as probe:
            if address.protocol == "tcp":
                # As the programs that will bind it: connections in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(socket_address(address.host, address.port))
            if address.protocol == "tcp":
                probe.listen(1)
    except OSError as error:
        return error
    return None


def _explain(address: BindAddress, failure: OSError) -> Problem:
    where = f"{with_port(address.host, address.port)}/{address.protocol} for {address.purpose}"
    if failure.errno == errno.EADDRINUSE:
        return Problem(address.path, f"{where} is held by {holder_of(address)}", "stop it, or choose another port")
    if failure.errno == errno.EADDRNOTAVAIL:
        return Problem(address.path, f"{where}: this address is not on this host", "use one that `ip addr` shows")
    if failure.errno == errno.EACCES:
        return Problem(address.path, f"{where}: not allowed", "ports below 1024 need CAP_NET_BIND_SERVICE")
    return Problem(address.path, f"{where}: {failure.strerror}")


class PortUse(Struct, frozen=True):
    """Who has an address: ``holder`` is empty if it is free, ``pids`` are those that may be seen."""

    address: BindAddress
    holder: str = ""
    pids: tuple[int, ...] = ()


def port_uses(addresses: Iterable[BindAddress]) -> list[PortUse]:
    """Return who has each of these addresses now; port 0 and host names are left out. May block."""
    connections = functools.cache(_connections)
    uses = []
    for address in addresses:
        if not address.port or not is_ip(address.host):
            continue
        failure = _try_bind(address)
        if failure is None:
            uses.append(PortUse(address))
        elif failure.errno == errno.EADDRINUSE:
            uses.append(PortUse(address, holder_of(address), tuple(_holders(address, connections()))))
        else:
            uses.append(PortUse(address, _explain(address, failure).message))
    return uses


def _connections() -> list[Any]:
    """Return all sockets that psutil lists; empty if it cannot read /proc, since this is only for messages."""
    import psutil

    try:
        return psutil.net_connections("inet")
    # A line that psutil cannot parse is a RuntimeError (psutil/_pslinux.py).
    except (psutil.Error, OSError, RuntimeError):
        return []


def holder_of(address: BindAddress) -> str:
    """Return the process that listens there, with its pid, or its user if we may not see the process."""
    import psutil

    for pid in _holders(address, _connections()):
        try:
            return f"{psutil.Process(pid).name()} (pid {pid})"
        except (psutil.Error, OSError):
            return f"pid {pid}"
    return _user_of(address)


def _holders(address: BindAddress, connections: Iterable[Any]) -> list[int]:
    """Return the pids that listen there, of the processes that we may see."""
    kind = socket.SOCK_STREAM if address.protocol == "tcp" else socket.SOCK_DGRAM
    return [
        connection.pid
        for connection in connections
        if connection.type == kind
        and connection.laddr
        and connection.laddr.port == address.port
        and (kind == socket.SOCK_DGRAM or connection.status == _LISTENS)
        and overlap(connection.laddr.ip, address.host)
        and connection.pid
    ]


def _user_of(address: BindAddress) -> str:
    import pwd

    for name in (address.protocol, address.protocol + "6"):
        with contextlib.suppress(OSError):
            for row in sockets_in_table(name):
                if row.port != address.port or not overlap(row.host, address.host):
                    continue
                try:
                    return f"a process of user {pwd.getpwuid(row.uid).pw_name}"
                except KeyError:
                    return f"a process of user id {row.uid}"
    return "a process that is not visible here"


def every_address() -> str:
    """Return the wildcard for every address of this host: of IPv6, which includes IPv4, if the kernel has it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM):
            return ANY_IPV6
    except OSError:
        return ANY_IPV4
