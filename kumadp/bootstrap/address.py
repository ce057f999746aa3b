"""Where Envoy's admin listens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TcpAdmin:
    """An admin on a TCP port; ``host`` is an IP address as text."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAdmin:
    """An admin on a Unix socket (control planes from 2.14 on)."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


AdminAddress = TcpAdmin | UnixAdmin


def parse_admin(text: str) -> AdminAddress | None:
    """The address whose text this is (`str` of it); None for anything else."""
    if text.startswith("unix:"):
        return UnixAdmin(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return TcpAdmin(host.strip("[]"), int(port)) if host and port.isdecimal() else None
