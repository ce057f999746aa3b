"""A small mesh: what the data plane of one node is served, and changes of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envoy.service.health.v3 import hds_pb2
from google.protobuf import json_format

from tests.support.xds import resources
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET, Tree, encode, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import trustme

    from tests.support.xds.nodes import Resources
    from tests.support.xds.profiles import Profile

Address = tuple[str, int]

# Kuma's names, and its unified ones.
IDENTITY, AUTHORITY = "identity_cert:secret:default", "mesh_ca:secret:default"
UNIFIED_IDENTITY, UNIFIED_AUTHORITY = "kri_mid_default_default__identity_", "system_trust_bundle"
ADMIN_CLUSTER = "kuma:envoy:admin"
SERVICE, PROTOCOL = "kuma.io/service", "kuma.io/protocol"


@dataclass
class Mesh:
    """Resources of a node, as trees in protobuf's JSON form by type URL and name.

    ``apply`` hands them to the control plane, and every change calls it. Endpoints of a service are those set here,
    else those of the Dataplanes that are registered. ``services`` are names of services by those of their clusters.
    ``ready`` are further resources that are encoded already, as for a mesh of thousands.
    """

    apply: Callable[[], None]
    trees: dict[str, dict[str, Tree]] = field(default_factory=lambda: {kind: {} for kind in resources.TYPES})
    ready: dict[str, dict[str, bytes]] = field(default_factory=lambda: {kind: {} for kind in resources.TYPES})
    endpoints: dict[str, list[Address]] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, str] = (IDENTITY, AUTHORITY)
    authority: trustme.CA | None = None
    specifier: Tree = field(default_factory=dict)

    def put(self, type_url: str, tree: Tree) -> None:
        """Add or replace any resource."""
        self.trees[type_url][name_of(type_url, tree)] = tree
        self.apply()

    def remove(self, type_url: str, name: str) -> None:
        """Take a resource away."""
        del self.trees[type_url][name]
        self.apply()

    def use_mtls(self, authority: trustme.CA, *identities: str) -> None:
        """Mutual TLS for all that is added from now on, its secrets by SDS."""
        self.authority = authority
        self.rotate(*identities)
        self.put(SECRET, resources.authority_secret(self.secrets[1], authority.cert_pem.bytes().decode()))

    def rotate(self, *identities: str) -> None:
        """A new certificate of the mesh's CA."""
        assert self.authority is not None
        issued = self.authority.issue_cert(*(identities or ("web.mesh",)))
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems).decode()
        self.put(SECRET, resources.identity_secret(self.secrets[0], chain, issued.private_key_pem.bytes().decode()))

    @property
    def _tls(self) -> Tree | None:
        return None if self.authority is None else resources.mutual_tls(*self.secrets)

    def inbound(
        self, port: int, application: int, *, protocol: str = "http", host: str = "127.0.0.1", name: str = ""
    ) -> None:
        """A listener in front of an application of this host; with a name it is unified and the cluster's too."""
        cluster = name or f"localhost:{application}"
        self.trees[CLUSTER][cluster] = resources.static_cluster(cluster, "127.0.0.1", application)
        self._listen(name or f"inbound:{host}:{port}", host, port, cluster, "INBOUND", protocol, self._tls)

    def outbound(
        self,
        port: int,
        service: str,
        *endpoints: Address,
        protocol: str = "http",
        http2: bool = False,
        host: str = "127.0.0.1",
        cluster: str = "",
        name: str = "",
    ) -> None:
        """A listener that leads to a service, its endpoints by EDS; ``http2`` is what Kuma speaks between sidecars."""
        cluster = cluster or service
        self.services[cluster] = service
        if endpoints:
            self.endpoints[service] = list(endpoints)
        self.trees[CLUSTER][cluster] = resources.eds_cluster(cluster, self._tls, http2=http2)
        self._listen(name or f"outbound:{host}:{port}", host, port, cluster, "OUTBOUND", protocol, None)

    def _listen(
        self, name: str, host: str, port: int, cluster: str, direction: str, protocol: str, tls: Tree | None
    ) -> None:
        make = resources.tcp_listener if protocol == "tcp" else resources.http_listener
        self.put(LISTENER, make(name, host, port, cluster, direction, tls))

    def add_endpoint(self, service: str, host: str, port: int) -> None:
        self.endpoints.setdefault(service, []).append((host, port))
        self.apply()

    def remove_endpoint(self, service: str, host: str, port: int) -> None:
        self.endpoints[service].remove((host, port))
        self.apply()

    def break_cluster(self, name: str) -> None:
        """Make Envoy reject the clusters: ring_hash with a minimum above its maximum."""
        broken = copy.deepcopy(self.trees[CLUSTER][name])
        broken |= {"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": 100, "maximumRingSize": 10}}
        self.put(CLUSTER, broken)

    def mend_cluster(self, name: str) -> None:
        mended = {k: v for k, v in self.trees[CLUSTER][name].items() if k not in {"lbPolicy", "ringHashLbConfig"}}
        self.put(CLUSTER, mended)

    def break_listener(self, name: str, taken: int) -> None:
        """Make Envoy reject a listener: its port is taken."""
        broken = copy.deepcopy(self.trees[LISTENER][name])
        broken["address"]["socketAddress"]["portValue"] = taken
        self.put(LISTENER, broken)

    def check_health(self, admin: int, *applications: int, interval: float = 1.0) -> None:
        """Have Envoy check its own admin, unless 0, and the applications, and report each ``interval`` seconds."""
        path = {"httpHealthCheck": {"path": "/ready"}}
        checks = [_check(ADMIN_CLUSTER, admin, path, interval)] if admin else []
        checks += [_check(f"localhost:{port}", port, {"tcpHealthCheck": {}}, interval) for port in applications]
        self.specifier = {"clusterHealthChecks": checks, "interval": f"{interval:g}s"}
        self.apply()

    def encoded_specifier(self) -> bytes:
        """The HealthCheckSpecifier, serialized; empty without checks."""
        if not self.specifier:
            return b""
        message = json_format.ParseDict(self.specifier, hds_pb2.HealthCheckSpecifier())
        encoded: bytes = message.SerializeToString(deterministic=True)
        return encoded

    def encoded(self, registered: dict[str, list[Address]]) -> Resources:
        """All resources; ``registered`` are the endpoints of services that Dataplanes offer."""
        encoded: Resources = {
            kind: {name: encode(kind, tree) for name, tree in trees.items()} for kind, trees in self.trees.items()
        }
        for cluster, service in self.services.items():
            members = self.endpoints.get(service, registered.get(service, []))
            encoded[ENDPOINTS][cluster] = encode(ENDPOINTS, resources.endpoints(cluster, members))
        for kind, made in self.ready.items():
            encoded[kind] |= made
        return encoded


def _check(cluster: str, port: int, checker: Tree, interval: float) -> Tree:
    check: Tree = {
        "timeout": f"{interval:g}s",
        "interval": f"{interval:g}s",
        "unhealthyThreshold": 1,
        "healthyThreshold": 1,
        "noTrafficInterval": f"{interval:g}s",
        **checker,
    }
    endpoint = {"address": resources.address("127.0.0.1", port)}
    return {"clusterName": cluster, "healthChecks": [check], "localityEndpoints": [{"endpoints": [endpoint]}]}


def offered(dataplane: Tree) -> dict[str, list[Address]]:
    """Services of a Dataplane with the addresses of their inbounds: by tag, else by the label that selects them."""
    networking = dataplane.get("networking") or {}
    label = (dataplane.get("labels") or {}).get("app", "")
    by_service: dict[str, list[Address]] = {}
    for inbound in networking.get("inbound") or []:
        place = (inbound.get("address") or networking["address"], inbound["port"])
        if service := (inbound.get("tags") or {}).get(SERVICE, label):
            by_service.setdefault(service, []).append(place)
    return by_service


def of_dataplane(
    dataplane: Tree, apply: Callable[[], None], profile: Profile, authority: trustme.CA | None = None
) -> Mesh:
    """What Kuma makes of a Dataplane: its inbounds, its outbounds, health checks of its Envoy and workloads."""
    mesh = Mesh(lambda: None)
    if profile.unified:
        mesh.secrets = (UNIFIED_IDENTITY, UNIFIED_AUTHORITY)
    if authority is not None:
        mesh.use_mtls(authority)
    networking: dict[str, Any] = dataplane.get("networking") or {}
    workloads = []
    for inbound in networking.get("inbound") or []:
        workload = inbound.get("servicePort") or inbound["port"]
        workloads.append(workload)
        host = inbound.get("address") or networking["address"]
        name = f"self_inbound_dp_{inbound.get('name') or inbound['port']}" if profile.unified else ""
        mesh.inbound(inbound["port"], workload, protocol=_protocol(inbound, profile), host=host, name=name)
    for outbound in networking.get("outbound") or []:
        _lead(mesh, outbound, profile)
    admin = (networking.get("admin") or {}).get("port", 0)
    if admin or workloads:
        mesh.check_health(0 if profile.admin_socket else admin, *workloads)
    mesh.apply = apply
    return mesh


def _protocol(inbound: Tree, profile: Profile) -> str:
    tagged = "" if profile.unified else (inbound.get("tags") or {}).get(PROTOCOL, "")
    field = inbound.get("protocol", "") if profile.protocol_field else ""
    return str(field or tagged or "tcp")


def _lead(mesh: Mesh, outbound: Tree, profile: Profile) -> None:
    """Add an outbound, by tags or by reference to a MeshService."""
    host, port = outbound.get("address") or "127.0.0.1", outbound["port"]
    reference = outbound.get("backendRef")
    if reference is None:
        mesh.outbound(port, outbound["tags"][SERVICE], http2=True, host=host)
        return
    service = reference.get("name") or reference["labels"]["kuma.io/display-name"]
    if profile.unified:
        unified = f"kri_msvc_default_default__{service}_{reference.get('port', '')}"
        mesh.outbound(port, service, http2=True, host=host, cluster=unified, name=unified)
    else:
        cluster = f"default_{service}__default_msvc_{reference.get('port', '')}"
        mesh.outbound(port, service, http2=True, host=host, cluster=cluster)
