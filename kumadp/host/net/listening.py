"""Sockets that listen on this host, and whose they are."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.addresses import canonical, overlap, without_zone
from kumadp.host.descriptors import is_exhausted
from kumadp.host.net.sock_diag import ListeningSocket, SockDiag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def listening_sockets(port: int = 0) -> list[ListeningSocket]:
    """Return the sockets that listen on a port (0: on any), from sock_diag(7) or else from /proc. May block.

    Raises OSError if no descriptor or memory is left.
    """
    try:
        with contextlib.closing(SockDiag()) as diag:
            return diag.listeners(port)
    except OSError as error:
        if is_exhausted(error):
            raise
        rows = itertools.chain(sockets_in_table("tcp"), sockets_in_table("tcp6"))
        return [row for row in rows if not port or row.port == port]


def listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return hosts and ports on which a process listens; none if it has ended. May block.

    If we may not see its descriptors (it has gained rights by its file), those of all processes of our user.
    Raises OSError as `listening_sockets`.
    """
    rows = listening_sockets()
    try:
        links = set(descriptors(pid))
    except PermissionError:
        return {(row.host, row.port) for row in rows if row.uid == os.geteuid()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {(row.host, row.port) for row in rows if f"socket:[{row.inode}]" in links}


def hosts_by_both(pid: int, port: int) -> frozenset[str]:
    """Return the hosts on which a process has a port by UDP and TCP; none if we may not know. May block."""
    try:
        links = set(descriptors(pid))
        udp = itertools.chain(sockets_in_table("udp"), sockets_in_table("udp6"))
        by_udp, by_tcp = (
            {row.host for row in rows if row.port == port and f"socket:[{row.inode}]" in links}
            for rows in (udp, listening_sockets(port))
        )
    except OSError:
        return frozenset()
    return frozenset(by_udp & by_tcp)


def is_held_by(pids: Iterable[int], host: str, port: int) -> bool:
    """Return whether one of these processes, of our own user, would accept a TCP connection to ``host``. May block."""
    with contextlib.suppress(OSError):
        return _accepts(pids, host, listening_sockets(port))
    return False


def _accepts(pids: Iterable[int], host: str, rows: Iterable[ListeningSocket]) -> bool:
    listening = [row for row in rows if overlap(canonical(row.host), host)]
    # A listener on the address itself precedes one on all addresses.
    own = canonical(without_zone(host))
    answering = [row for row in listening if canonical(row.host) == own] or listening
    sockets = {f"socket:[{row.inode}]" for row in answering if row.uid == os.geteuid()}
    return bool(sockets) and any(link in sockets for pid in pids for link in _visible_descriptors(pid))


def descriptors(pid: int) -> Iterator[str]:
    """Yield the targets of the descriptors of a process. Raises OSError if we may not see them, or it has ended."""
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - hundreds of names, each read once
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{name}")  # noqa: PTH115 - the same


def _visible_descriptors(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from descriptors(pid)


def _address_in_row(column: str) -> tuple[str, int]:
    """Return address and port of a row: 32-bit words in this machine's byte order, in hexadecimal (proc_net_tcp)."""
    words, _, port = column.partition(":")
    packed = b"".join(int(words[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed), int(port, 16)


def sockets_in_table(name: str) -> Iterator[ListeningSocket]:
    """Yield the sockets of a table in /proc/net: ``udp``, ``udp6``; of ``tcp``, ``tcp6`` those that listen. May block.

    None if this kernel has no such table. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError), Path("/proc/net", name).open() as rows:
        next(rows)
        for row in rows:
            columns = row.split()
            if name.startswith("tcp") and columns[3] != "0A":
                # Listening sockets come first (Linux, net/ipv4/tcp_ipv4.c: tcp_get_idx).
                break
            host, port = _address_in_row(columns[1])
            yield ListeningSocket(host, port, int(columns[7]), int(columns[9]))
