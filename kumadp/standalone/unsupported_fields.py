"""What standalone mode cannot do: an error where traffic would be wrong, a remark where something is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.errors import Problem
from kumadp.resources.newer_rules import is_port
from kumadp.resources.validate import SERVICE

if TYPE_CHECKING:
    from kumadp.resources.load import Resource
    from kumadp.resources.types import Dataplane

# Clusters of our own, which a service of the same name would replace.
_OUR_CLUSTERS = ("localhost:", "kuma_envoy_admin")


def refusals(resource: Resource, spec: Dataplane) -> list[Problem]:
    """Everything in our Dataplane that cannot be served, each with its line."""
    found: list[Problem] = []

    def refuse(path: str, message: str, hint: str) -> None:
        file, line = resource.where(path)
        found.append(Problem(path, message, hint, file, line))

    networking = spec.networking
    if networking.gateway is not None and networking.gateway.type == "BUILTIN":
        refuse("networking.gateway.type", "a builtin gateway needs a control plane", "use DELEGATED, or --cp-address")
    if networking.transparent_proxying is not None:
        refuse("networking.transparentProxying", "needs a control plane", "take it out, or use --cp-address")
    if networking.gateway is None and not networking.inbound and not networking.listeners:
        refuse(
            "networking.inbound", "there is no inbound and no gateway", "name at least one inbound, or use --cp-address"
        )
    tags = [(f"networking.inbound[{index}]", inbound.tags) for index, inbound in enumerate(networking.inbound)]
    if networking.gateway is not None:
        tags.append(("networking.gateway", networking.gateway.tags))
    for path in (path for path, tagged in tags if not tagged):
        refuse(f'{path}.tags["{SERVICE}"]', "is missing", "name the service, or use --cp-address")
    for index, inbound in enumerate(networking.inbound):
        # Kuma 2.13: without servicePort and serviceAddress the inbound's own port and address are meant.
        same_port = inbound.service_port in {0, inbound.port}
        if same_port and not inbound.service_address and inbound.state != "Ignored":
            path = f"networking.inbound[{index}].servicePort"
            refuse(path, "the inbound would forward to itself", "name the application's port, or its serviceAddress")
    for index, outbound in enumerate(networking.outbound):
        path = f"networking.outbound[{index}]"
        if outbound.backend_ref is not None:
            refuse(f"{path}.backendRef", "needs a control plane", "name the service by tags")
        elif outbound.tags.get(SERVICE, "").startswith(_OUR_CLUSTERS):
            refuse(f'{path}.tags["{SERVICE}"]', "is a name that kumadp uses itself", "name the service otherwise")
    if networking.listeners:
        refuse("networking.listeners", "a zone proxy needs a control plane", "take them out, or use --cp-address")
    for path, message, hint in _metrics(spec):
        refuse(path, message, hint)
    return found


def _metrics(spec: Dataplane) -> list[tuple[str, str, str]]:
    if spec.metrics is None or spec.metrics.type != "prometheus":
        return []
    found = []
    port, path = spec.metrics.conf.get("port", 0), spec.metrics.conf.get("path", "")
    if not is_port(port):
        found.append(("metrics.conf.port", f"{port!r} is not a port", "1 to 65535"))
    if not isinstance(path, str) or (path and not path.startswith("/")):
        found.append(("metrics.conf.path", f"{path!r} is not a path", "write one like /metrics"))
    return found


def remarks(spec: Dataplane) -> list[tuple[str, str]]:
    """Fields that are left out, and why."""
    if spec.metrics is None:
        return []
    if spec.metrics.type != "prometheus":
        return [("metrics.type", f"{spec.metrics.type} is not served in standalone mode, prometheus is")]
    told = ("aggregate", "tls", "tags")
    return [(f"metrics.conf.{name}", "is left out in standalone mode") for name in told if spec.metrics.conf.get(name)]
