"""What a generated configuration is made of, and whether its sockets get into each other's way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.addresses import overlap

if TYPE_CHECKING:
    from kumadp.standalone.config_fragments import Json


@dataclass(frozen=True, slots=True)
class DnsListener:
    """Where Envoy's DNS filter listens."""

    host: str
    port: int


@dataclass
class GeneratedConfig:
    """Clusters and listeners by name, where each came from (file, line, field), and remarks."""

    clusters: dict[str, Json] = field(default_factory=dict)
    listeners: dict[str, Json] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def clashes(made: GeneratedConfig, admin: tuple[str, int]) -> list[str]:
    """Every two sockets of one configuration that cannot both be bound, named by the fields that ask for them."""
    bound: dict[tuple[int, str], list[tuple[str, str]]] = {(admin[1], "TCP"): [(admin[0], "Envoy's admin")]}
    found = []
    for name, listener in made.listeners.items():
        address = listener["address"]["socketAddress"]
        host, port = address["address"], address["portValue"]
        others = bound.setdefault((port, address.get("protocol", "TCP")), [])
        origin = made.origin.get(name, name)
        for other_host, other in others:
            if overlap(host, other_host):
                found.append(f"{origin}: {host} port {port} is bound by {other} already")
                break
        others.append((host, origin))
    return found
