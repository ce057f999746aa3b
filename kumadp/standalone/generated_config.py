"""A generated configuration, and a check that its sockets do not clash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.addresses import overlap

if TYPE_CHECKING:
    from kumadp.standalone.config_fragments import Json


class DnsListener(Struct, frozen=True):
    """The address of Envoy's DNS filter."""

    host: str
    port: int


class GeneratedConfig(Struct):
    """Clusters and listeners by name, the origin of each (file, line, field), and notes for the log."""

    clusters: dict[str, Json] = field(default_factory=dict)
    listeners: dict[str, Json] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def clashes(config: GeneratedConfig, admin: tuple[str, int]) -> list[str]:
    """Return a message for each two sockets that cannot both be bound, with the fields that require them."""
    bound: dict[tuple[int, str], list[tuple[str, str]]] = {(admin[1], "TCP"): [(admin[0], "Envoy's admin")]}
    messages = []
    for name, listener in config.listeners.items():
        address = listener["address"]["socketAddress"]
        host, port = address["address"], address["portValue"]
        others = bound.setdefault((port, address.get("protocol", "TCP")), [])
        origin = config.origin.get(name, name)
        for other_host, other in others:
            if overlap(host, other_host):
                messages.append(f"{origin}: {host} port {port} is bound by {other} already")
                break
        others.append((host, origin))
    return messages
