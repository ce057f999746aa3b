"""Sockets that outlive the program: bound once, handed over by execve(2), claimed by address in the next program.

The sockets that `kumadp.host.net.serve` binds are registered here while they are open. The program that replaces us
receives the descriptors, and code that binds the same address gets the socket itself: the same port, the same inode of
a Unix socket, and every connection and datagram that waits in it.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind = Literal["tcp", "udp", "unix"]


class HandedSocket(msgspec.Struct, frozen=True):
    """A bound socket; for the ``kind`` unix ``host`` is the path and ``port`` is 0."""

    kind: Kind
    host: str
    port: int
    descriptor: int


_Key = tuple[Kind, str, int]
_open: weakref.WeakValueDictionary[_Key, socket.socket] = weakref.WeakValueDictionary()
_received: dict[_Key, socket.socket] = {}
_probed: set[_Key] = set()


def register(kind: Kind, host: str, port: int, sock: socket.socket) -> None:
    """Register a socket as bound to this address, instead of any other."""
    _open[kind, host, port] = sock


def register_probed(kind: Kind, host: str, port: int) -> None:
    """Register an address at which readiness is probed."""
    _probed.add((kind, host, port))


def is_probed(handed: HandedSocket) -> bool:
    """Return whether readiness is probed at this socket."""
    return (handed.kind, handed.host, handed.port) in _probed


def claim(kind: Kind, host: str, port: int) -> socket.socket | None:
    """Return the socket received for this address, once; None if there is none."""
    sock = _received.pop((kind, host, port), None)
    if sock is not None:
        register(kind, host, port, sock)
    return sock


def sockets() -> list[HandedSocket]:
    """Return every socket that is bound and open, including those received and not claimed yet."""
    registered = {**_received, **_open}
    return [HandedSocket(*key, sock.fileno()) for key, sock in registered.items() if sock.fileno() >= 0]


def receive(handed: Iterable[HandedSocket]) -> None:
    """Take ownership of these descriptors."""
    for entry in handed:
        _received[entry.kind, entry.host, entry.port] = socket.socket(fileno=entry.descriptor)


def paths(folder: Path, prefix: str) -> list[Path]:
    """Return the paths of unclaimed Unix sockets in ``folder`` whose names begin with ``prefix``."""
    unix = (Path(key[1]) for key in _received if key[0] == "unix")
    return [path for path in unix if path.parent == folder and path.name.startswith(prefix)]


def holds(kind: Kind, port: int) -> bool:
    """Return whether an unclaimed socket has this port: then it is ours, whatever its address."""
    return any(key[0] == kind and key[2] == port for key in _received)


def hosts(kind: Kind, port: int) -> frozenset[str]:
    """Return the addresses of unclaimed sockets with this port."""
    return frozenset(key[1] for key in _received if key[0] == kind and key[2] == port)


def close_unclaimed(kind: Kind | None = None, port: int | None = None) -> list[str]:
    """Close the unclaimed sockets (of this kind and port), with the connections in them; return their addresses."""
    closed = []
    for key in [key for key in _received if kind in {None, key[0]} and port in {None, key[2]}]:
        _received.pop(key).close()
        closed.append(key[1] if key[0] == "unix" else f"{key[1]}:{key[2]}/{key[0]}")
        if key[0] == "unix":
            with contextlib.suppress(OSError):
                Path(key[1]).unlink()
    return closed
