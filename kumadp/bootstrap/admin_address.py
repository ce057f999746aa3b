"""The address of Envoy's admin."""

from __future__ import annotations

import re

from msgspec import Struct

from kumadp.addresses import is_ip, with_port

_PORT = re.compile("[0-9]{1,5}")


class TcpAdmin(Struct, frozen=True):
    """An admin on a TCP port; ``host`` is an IP address as text."""

    host: str
    port: int

    def __str__(self) -> str:
        return with_port(self.host, self.port)


class UnixAdmin(Struct, frozen=True):
    """An admin on a Unix socket (control planes from 2.14 on)."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


AdminAddress = TcpAdmin | UnixAdmin


def parse_admin(text: str) -> AdminAddress | None:
    """Parse the text of an address (its `str`); returns None for anything else."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        return UnixAdmin(path) if path and "\0" not in path else None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return TcpAdmin(host, int(port)) if is_ip(host) and _PORT.fullmatch(port) and int(port) < 1 << 16 else None
