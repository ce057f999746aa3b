"""Ports of which the settings say 0: chosen before the control plane is asked, and told to it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

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
    """What was chosen, by the field of the settings; ``before`` is what a kumadp before this one had chosen.

    Raises SettingsError, PortsTaken.
    """

    def __init__(self, settings: Settings, *, standalone: bool, before: Mapping[str, int]) -> None:
        self._free = FreePorts()
        self.ports: dict[str, int] = {}
        if standalone and settings.admin_port is not None:
            message = "the data planes of a folder find each other's readiness by the port in their files"
            raise SettingsError([Problem("--admin-port", message, "name networking.admin.port in the Dataplane")])
        for field, udp in _CHOSEN.items():
            if getattr(settings, field) == 0:
                # Envoy and CoreDNS that are adopted have them, and who asks for our readiness knows them.
                self.ports[field] = before.get(field) or self._free.take(field, udp=udp)
        if self.ports:
            log.info("free ports: %s", ", ".join(f"{field} {port}" for field, port in self.ports.items()))

    def settle(self, settings: Settings, resource: Resource | None) -> tuple[Settings, Resource | None]:
        """The same with the chosen ports, also those that were read anew."""
        chosen: dict[str, Any] = {**self.ports}
        made = dataclasses.replace(settings, **chosen)
        if made.admin_port is not None and resource is not None:
            resource = with_admin_port(resource, made.admin_port)
        return made, resource

    def close(self) -> None:
        """Whoever is to have them has bound them."""
        self._free.close()
