"""Resources as versions of Kuma take them: tags up to 2.14; protocols, labels and MeshServices from 3.0 on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Ports

Tree = dict[str, Any]

SERVICE, PROTOCOL = "kuma.io/service", "kuma.io/protocol"
# Name of an inbound, and the port of each MeshService that leads to it.
INBOUND, PORT = "main", 80
EVERYBODY = {"targetRef": {"kind": "Mesh"}}


def dataplane(name: str, service: str, ports: Ports, app_port: int, *, probes: bool = True) -> Tree:
    """A Dataplane with one inbound in front of ``app_port`` and one outbound that leads to itself through the mesh."""
    resource: Tree = {
        "type": "Dataplane",
        "mesh": "default",
        "name": name,
        "networking": {
            "address": "127.0.0.1",
            "inbound": [
                {
                    "port": ports.inbound,
                    "servicePort": app_port,
                    "serviceAddress": "127.0.0.1",
                    "tags": {SERVICE: service, PROTOCOL: "http"},
                }
            ],
            "outbound": [{"port": ports.outbound, "tags": {SERVICE: service}}],
            "admin": {"port": ports.admin},
        },
    }
    if probes:
        resource["probes"] = {
            "port": ports.probes,
            "endpoints": [{"inboundPort": app_port, "inboundPath": "/healthz", "path": "/app/healthz"}],
        }
    return resource


def reference(service: str) -> Tree:
    """The ``backendRef`` of an outbound that leads to a service."""
    return {"kind": "MeshService", "name": service, "port": PORT}


def cluster_of(service: str) -> str:
    """Envoy's name of the cluster of a MeshService (2.14 with unified naming, and 3.0)."""
    return f"kri_msvc_default_default__{service}_{PORT}"


def without_tags(resource: Tree) -> Tree:
    """A Dataplane that 3.0 takes, from one with tags."""
    suited = copy.deepcopy(resource)
    networking = suited["networking"]
    for number, inbound in enumerate(networking.get("inbound", ())):
        tags = inbound.pop("tags", {})
        # One name for two inbounds is one listener, and endpoints of the wrong one.
        inbound.setdefault("name", f"{INBOUND}-{number}" if number else INBOUND)
        inbound.setdefault("protocol", tags.get(PROTOCOL, "tcp"))
        _label(suited, tags)
    _label(suited, networking.get("gateway", {}).pop("tags", {}))
    for outbound in networking.get("outbound", ()):
        if tags := outbound.pop("tags", None):
            outbound["backendRef"] = reference(tags[SERVICE])
    return suited


def _label(resource: Tree, tags: Tree) -> None:
    if SERVICE in tags:
        resource["labels"] = {"app": tags[SERVICE], **resource.get("labels", {})}


def with_both(resource: Tree) -> Tree:
    """A Dataplane that 2.13 to 3.0 all take: tags too, for versions that know nothing else."""
    both = without_tags(resource)
    for inbound, tagged in zip(both["networking"].get("inbound", ()), resource["networking"]["inbound"], strict=False):
        inbound["tags"] = tagged["tags"]
    return both


def mesh_services(resource: Tree, *, by_tags: bool) -> list[Tree]:
    """A MeshService for each inbound with tags; it selects by tags (up to 2.14), or by labels (2.14 and later)."""
    services = []
    for inbound in resource["networking"].get("inbound", ()):
        tags = inbound.get("tags", {})
        if SERVICE not in tags:
            continue
        port = {"port": PORT, "targetPort": INBOUND, "appProtocol": tags.get(PROTOCOL, "tcp")}
        selector: Tree = {"dataplaneLabels": {"matchLabels": {"app": tags[SERVICE]}}}
        if by_tags:
            selector = {"dataplaneTags": {SERVICE: tags[SERVICE]}}
        services.append(
            {
                "type": "MeshService",
                "mesh": "default",
                "name": tags[SERVICE],
                "labels": {"kuma.io/origin": "zone"},
                "spec": {"selector": selector, "ports": [port]},
            }
        )
    return services


def mesh_identity(expiry: str = "24h", authority: tuple[Path, Path] | None = None) -> Tree:
    """A MeshIdentity for all data planes; 2.12 and later.

    ``authority``: files with certificate and key of its CA, None for one of the control plane's own.
    """
    bundled: Tree = {
        "meshTrustCreation": "Enabled",
        "insecureAllowSelfSigned": True,
        "certificateParameters": {"expiry": expiry},
        "autogenerate": {"enabled": authority is None},
    }
    if authority is not None:
        names = ("certificate", "privateKey")
        files = ({"type": "File", "file": {"path": str(path)}} for path in authority)
        bundled["ca"] = dict(zip(names, files, strict=True))
    return {
        "type": "MeshIdentity",
        "mesh": "default",
        "name": "identity",
        "labels": {"kuma.io/origin": "zone"},
        "spec": {
            "selector": {"dataplane": {"matchLabels": {}}},
            # By default it ends with a workload, which the token would have to name too.
            "spiffeID": {"trustDomain": "{{ .Mesh }}.{{ .Zone }}.mesh.local", "path": '/app/{{ label "app" }}'},
            "provider": {"type": "Bundled", "bundled": bundled},
        },
    }


def access_log(backend: Tree, *, by_rules: bool) -> Tree:
    """A MeshAccessLog for what all inbounds receive: ``from`` up to 2.14, ``rules`` from 3.0 on."""
    default = {"default": {"backends": [backend]}}
    spec: Tree = {**EVERYBODY, "from": [{**EVERYBODY, **default}]}
    if by_rules:
        spec = {**EVERYBODY, "rules": [default]}
    return {"type": "MeshAccessLog", "mesh": "default", "name": "to-sink", "spec": spec}


def otel_backend(port: int) -> Tree:
    """An OpenTelemetry collector at a port of this host, which policies of 3.0 refer to by its label ``app``."""
    return {
        "type": "MeshOpenTelemetryBackend",
        "mesh": "default",
        "name": "collector",
        "labels": {"app": "collector", "kuma.io/origin": "zone"},
        "spec": {"endpoint": {"address": "127.0.0.1", "port": port}, "protocol": "grpc"},
    }


def zone_proxy(kind: str, name: str, ports: Ports) -> Tree:
    """A zone proxy as 3.0 has it, a Dataplane with a listener: ``ZoneIngress`` or ``ZoneEgress``."""
    listener = {"type": kind, "name": "main", "address": "127.0.0.1", "port": ports.inbound}
    networking = {"address": "127.0.0.1", "listeners": [listener], "admin": {"port": ports.admin}}
    # What a MeshIdentity derives the SPIFFE ID from.
    labels = {"app": name}
    return {"type": "Dataplane", "mesh": "default", "name": name, "labels": labels, "networking": networking}


def external_service(name: str, port: int) -> Tree:
    """A MeshExternalService at a port of this host; only through a zone egress in 3.0."""
    match = {"type": "HostnameGenerator", "port": PORT, "protocol": "http"}
    return {
        "type": "MeshExternalService",
        "mesh": "default",
        "name": name,
        "labels": {"kuma.io/origin": "zone"},
        "spec": {"match": match, "endpoints": [{"address": "127.0.0.1", "port": port}]},
    }


def permission(action: str, *, by_identity: bool) -> Tree:
    """A MeshTrafficPermission for everybody: ``Allow`` or ``Deny``, by tags (up to 2.14) or by SPIFFE ID."""
    spec: Tree = {**EVERYBODY, "from": [{**EVERYBODY, "default": {"action": action}}]}
    if by_identity:
        anybody = [{"spiffeID": {"type": "Prefix", "value": "spiffe://default.default.mesh.local"}}]
        spec = {"rules": [{"default": {action.lower(): anybody}}]}
    return {"type": "MeshTrafficPermission", "mesh": "default", "name": "all", "spec": spec}
