"""Sockets that outlive the program: bound once, handed over by execve(2), found again by their address.

What `kumadp.host.net.serve` binds is noted here as long as it is open. The program that takes our place receives the
descriptors, and whoever binds the same address gets the socket itself: the same port, the same inode of a Unix socket,
and every connection and datagram that waits in it.
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
    """A bound socket: ``host`` is the path where ``kind`` is unix, ``port`` then 0."""

    kind: Kind
    host: str
    port: int
    descriptor: int


_Key = tuple[Kind, str, int]
_open: weakref.WeakValueDictionary[_Key, socket.socket] = weakref.WeakValueDictionary()
_received: dict[_Key, socket.socket] = {}
_probed: set[_Key] = set()


def register(kind: Kind, host: str, port: int, sock: socket.socket) -> None:
    """Remember a socket as bound there, in place of any other."""
    _open[kind, host, port] = sock


def register_probed(kind: Kind, host: str, port: int) -> None:
    """Remember that readiness is asked for there."""
    _probed.add((kind, host, port))


def is_probed(handed: HandedSocket) -> bool:
    """Whether readiness is asked for there."""
    return (handed.kind, handed.host, handed.port) in _probed


def claim(kind: Kind, host: str, port: int) -> socket.socket | None:
    """The socket received for this address, once."""
    sock = _received.pop((kind, host, port), None)
    if sock is not None:
        register(kind, host, port, sock)
    return sock


def sockets() -> list[HandedSocket]:
    """Every socket that is bound and open now, those received and not taken yet too."""
    known = {**_received, **_open}
    return [HandedSocket(*key, sock.fileno()) for key, sock in known.items() if sock.fileno() >= 0]


def receive(handed: Iterable[HandedSocket]) -> None:
    """Own these descriptors from now on."""
    for one in handed:
        _received[one.kind, one.host, one.port] = socket.socket(fileno=one.descriptor)


def paths(folder: Path, prefix: str) -> list[Path]:
    """Of received Unix sockets, not taken yet, those in ``folder`` whose names begin so."""
    found = (Path(key[1]) for key in _received if key[0] == "unix")
    return [path for path in found if path.parent == folder and path.name.startswith(prefix)]


def holds(kind: Kind, port: int) -> bool:
    """Whether a received socket, not taken yet, has this port: then it is ours, whatever its address."""
    return any(key[0] == kind and key[2] == port for key in _received)


def hosts(kind: Kind, port: int) -> frozenset[str]:
    """The addresses of received sockets of this port, not taken yet."""
    return frozenset(key[1] for key in _received if key[0] == kind and key[2] == port)


def close_unclaimed(kind: Kind | None = None, port: int | None = None) -> list[str]:
    """Close what was received and not taken (of this kind and port), with what waits in it; says which."""
    closed = []
    for key in [key for key in _received if kind in {None, key[0]} and port in {None, key[2]}]:
        _received.pop(key).close()
        closed.append(key[1] if key[0] == "unix" else f"{key[1]}:{key[2]}/{key[0]}")
        if key[0] == "unix":
            with contextlib.suppress(OSError):
                Path(key[1]).unlink()
    return closed
