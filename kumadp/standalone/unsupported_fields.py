"""Fields that standalone mode does not support: an error if traffic would be wrong, otherwise a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.errors import Problem
from kumadp.resources.newer_rules import is_port
from kumadp.resources.types import SERVICE

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Dataplane

# Clusters of kumadp, which a service of the same name would replace.
_OUR_CLUSTERS = ("localhost:", "kuma_envoy_admin")


def unsupported_fields(resource: Resource, spec: Dataplane) -> list[Problem]:
    """Return a problem for each field of our Dataplane that cannot be served, with its line."""
    problems: list[Problem] = []

    def reject(path: str, message: str, hint: str) -> None:
        file, line = resource.where(path)
        problems.append(Problem(path, message, hint, file, line))

    networking = spec.networking
    if networking.gateway is not None and networking.gateway.type == "BUILTIN":
        reject("networking.gateway.type", "a builtin gateway needs a control plane", "use DELEGATED, or --cp-address")
    if networking.transparent_proxying is not None:
        reject("networking.transparentProxying", "needs a control plane", "remove it, or use --cp-address")
    if networking.gateway is None and not networking.inbound and not networking.outbound and not networking.listeners:
        reject("networking", "there is no inbound, no outbound and no gateway", "name at least one")
    for index, inbound in enumerate(networking.inbound):
        # Kuma 2.13: servicePort and serviceAddress default to the inbound's own port and address.
        same_port = inbound.service_port in {0, inbound.port}
        if same_port and not inbound.service_address and inbound.state != "Ignored":
            path = f"networking.inbound[{index}].servicePort"
            reject(path, "the inbound would forward to itself", "name the application's port, or its serviceAddress")
    for index, outbound in enumerate(networking.outbound):
        path = f"networking.outbound[{index}]"
        if outbound.backend_ref is not None:
            if outbound.backend_ref.kind != "MeshService":
                reject(f"{path}.backendRef.kind", "needs a control plane", "MeshService, or use --cp-address")
        elif outbound.tags.get(SERVICE, "").startswith(_OUR_CLUSTERS):
            reject(f'{path}.tags["{SERVICE}"]', "is a name that kumadp uses itself", "give the service another name")
    if networking.listeners:
        reject("networking.listeners", "a zone proxy needs a control plane", "remove them, or use --cp-address")
    for path, message, hint in _metrics(spec):
        reject(path, message, hint)
    return problems


def _metrics(spec: Dataplane) -> list[tuple[str, str, str]]:
    if spec.metrics is None or spec.metrics.type != "prometheus":
        return []
    problems = []
    port, path = spec.metrics.conf.get("port", 0), spec.metrics.conf.get("path", "")
    if not is_port(port):
        problems.append(("metrics.conf.port", f"{port!r} is not a port", "1 to 65535"))
    if not isinstance(path, str) or (path and not path.startswith("/")):
        problems.append(("metrics.conf.path", f"{path!r} is not a path", "write one like /metrics"))
    return problems


def ignored_fields(spec: Dataplane) -> list[tuple[str, str]]:
    """Return the paths of fields that are ignored, and the reason."""
    if spec.metrics is None:
        return []
    if spec.metrics.type != "prometheus":
        return [("metrics.type", f"{spec.metrics.type} is not served in standalone mode, prometheus is")]
    ignored = ("aggregate", "tls", "tags")
    return [
        (f"metrics.conf.{name}", "is ignored in standalone mode") for name in ignored if spec.metrics.conf.get(name)
    ]
