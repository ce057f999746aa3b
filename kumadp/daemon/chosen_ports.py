"""Free ports for settings with port 0: chosen before the bootstrap request, which reports them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec.structs

from kumadp.errors import Problem, SettingsError
from kumadp.host.net.free_ports import FreePorts
from kumadp.resources.resource import with_admin_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")

# By the field of the settings: whether the port is for UDP too.
_CHOSEN = {
    "admin_port": False,
    "readiness_port": False,
    "virtual_probes_port": False,
    "coredns_port": True,
    "envoy_dns_port": True,
    "dns_prometheus_port": False,
}


class ChosenPorts:
    """The chosen ports, by the field of the settings; ``previous`` is what a previous kumadp had chosen.

    Raises SettingsError, PortsTaken.
    """

    def __init__(self, settings: Settings, *, standalone: bool, previous: Mapping[str, int]) -> None:
        self._free = FreePorts()
        self.ports: dict[str, int] = {}
        if standalone and settings.admin_port is not None:
            message = "the data planes of a folder find each other's readiness by the port in their files"
            raise SettingsError([Problem("--admin-port", message, "name networking.admin.port in the Dataplane")])
        for field, udp in _CHOSEN.items():
            if getattr(settings, field) == 0:
                # Adopted programs have them, and clients of our readiness know them.
                self.ports[field] = previous.get(field) or self._free.take(field, udp=udp)
        if self.ports:
            log.info("free ports: %s", ", ".join(f"{field} {port}" for field, port in self.ports.items()))

    def settle(self, settings: Settings, resource: Resource | None) -> tuple[Settings, Resource | None]:
        """Return the same with the chosen ports, also after they were read again."""
        chosen: dict[str, Any] = {**self.ports}
        settled = msgspec.structs.replace(settings, **chosen)
        if settled.admin_port is not None and resource is not None:
            resource = with_admin_port(resource, settled.admin_port)
        return settled, resource

    def close(self) -> None:
        """Stop reserving them: whoever is to have them has bound them."""
        self._free.close()
