"""Whether and where virtual probes are served, decided from settings, the Dataplane and the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.addresses import LOOPBACK
from kumadp.errors import Problem, SettingsError
from kumadp.host.environment import on_kubernetes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Dataplane
    from kumadp.settings.model import Settings


class ProbesPlan(Struct, frozen=True):
    """Where virtual probes are served; ``ports`` is the list of the generic form, empty for the Dataplane's own."""

    host: str
    port: int
    generic_ports: tuple[int, ...]


def plan_probes(
    settings: Settings, dataplane: Dataplane | None, environ: Mapping[str, str]
) -> tuple[ProbesPlan | None, str]:
    """Return where virtual probes are served, and if they are not, one line why ("" if nobody expects them).

    ``auto`` leaves the port alone on Kubernetes: there the control plane makes the Dataplane and Kuma 2.8 gives Envoy
    a listener on 9000. Without a Dataplane of ours they are served on the pod's address. Raises SettingsError if
    ``on`` has nothing to serve.
    """
    own = dataplane.probes if dataplane is not None and dataplane.probes and dataplane.probes.endpoints else None
    if settings.virtual_probes == "off":
        return None, "virtual probes are off by setting" if own else ""
    if settings.virtual_probes == "on" and own is None:
        if not settings.virtual_probes_ports:
            message = "on, but no Dataplane with probes is given, so there is nothing to serve"
            raise SettingsError([Problem("--virtual-probes", message, "name ports with --virtual-probes-ports")])
        address = dataplane.networking.address if dataplane is not None else settings.instance_ip
        host = settings.virtual_probes_address or address or LOOPBACK
        return ProbesPlan(host, settings.virtual_probes_port, settings.virtual_probes_ports), ""
    if settings.virtual_probes == "auto" and on_kubernetes(environ):
        return None, "virtual probes: on Kubernetes the control plane owns port 9000, so it is left alone"
    if own is None:
        return None, ""
    assert dataplane is not None  # noqa: S101
    host = settings.virtual_probes_address or dataplane.networking.address
    return ProbesPlan(host, own.port or settings.virtual_probes_port, ()), ""


def changed_probes(settings: Settings, before: Resource | None, after: Resource | None) -> str:
    """Return a note if ``probes`` of a reloaded Dataplane differ from those of the start, which are served; else ""."""
    if settings.virtual_probes == "off" or before is None or after is None:
        return ""
    former, new = getattr(before.spec, "probes", None), getattr(after.spec, "probes", None)
    if former is None or new is None:
        is_same = former is new
    else:
        ports = {probes.port or settings.virtual_probes_port for probes in (former, new)}
        is_same = former.endpoints == new.endpoints and len(ports) == 1
    return "" if is_same else "a restart is required for the changed probes of the Dataplane"
