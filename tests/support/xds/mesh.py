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

Address = tuple[str, int]

# Kuma's names.
IDENTITY, AUTHORITY = "identity_cert:secret:default", "mesh_ca:secret:default"
ADMIN_CLUSTER = "kuma:envoy:admin"


@dataclass
class Mesh:
    """Resources of a node, as trees in protobuf's JSON form by type URL and name.

    ``apply`` hands them to the control plane, and every change calls it. Endpoints of a service are those set here,
    else those of the Dataplanes that are registered.
    """

    apply: Callable[[], None]
    trees: dict[str, dict[str, Tree]] = field(default_factory=lambda: {kind: {} for kind in resources.TYPES})
    endpoints: dict[str, list[Address]] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
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
        self.put(SECRET, resources.authority_secret(AUTHORITY, authority.cert_pem.bytes().decode()))

    def rotate(self, *identities: str) -> None:
        """A new certificate of the mesh's CA."""
        assert self.authority is not None
        issued = self.authority.issue_cert(*(identities or ("web.mesh",)))
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems).decode()
        self.put(SECRET, resources.identity_secret(IDENTITY, chain, issued.private_key_pem.bytes().decode()))

    @property
    def _tls(self) -> Tree | None:
        return None if self.authority is None else resources.mutual_tls(IDENTITY, AUTHORITY)

    def inbound(self, port: int, application: int, *, protocol: str = "http", host: str = "127.0.0.1") -> None:
        """A listener in front of an application of this host."""
        cluster = f"localhost:{application}"
        self.trees[CLUSTER][cluster] = resources.static_cluster(cluster, "127.0.0.1", application)
        self._listen(f"inbound:{host}:{port}", host, port, cluster, "INBOUND", protocol, self._tls)

    def outbound(
        self,
        port: int,
        service: str,
        *endpoints: Address,
        protocol: str = "http",
        http2: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        """A listener that leads to a service, its endpoints by EDS; ``http2`` is what Kuma speaks between sidecars."""
        self.services.add(service)
        if endpoints:
            self.endpoints[service] = list(endpoints)
        self.trees[CLUSTER][service] = resources.eds_cluster(service, self._tls, http2=http2)
        self._listen(f"outbound:{host}:{port}", host, port, service, "OUTBOUND", protocol, None)

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
        """Have Envoy check its own admin and the applications, and report each ``interval`` seconds, by HDS."""
        path = {"httpHealthCheck": {"path": "/ready"}}
        checks = [_check(ADMIN_CLUSTER, admin, path, interval)]
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
        for service in self.services:
            members = self.endpoints.get(service, registered.get(service, []))
            encoded[ENDPOINTS][service] = encode(ENDPOINTS, resources.endpoints(service, members))
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
    """Services of a Dataplane with the addresses of their inbounds."""
    networking = dataplane.get("networking") or {}
    by_service: dict[str, list[Address]] = {}
    for inbound in networking.get("inbound") or []:
        place = (inbound.get("address") or networking["address"], inbound["port"])
        by_service.setdefault(inbound["tags"]["kuma.io/service"], []).append(place)
    return by_service


def of_dataplane(dataplane: Tree, apply: Callable[[], None], authority: trustme.CA | None = None) -> Mesh:
    """What Kuma makes of a Dataplane: its inbounds, its outbounds, health checks of its Envoy and workloads."""
    mesh = Mesh(lambda: None)
    if authority is not None:
        mesh.use_mtls(authority)
    networking: dict[str, Any] = dataplane.get("networking") or {}
    workloads = []
    for inbound in networking.get("inbound") or []:
        workload = inbound.get("servicePort") or inbound["port"]
        workloads.append(workload)
        protocol = inbound["tags"].get("kuma.io/protocol", "tcp")
        host = inbound.get("address") or networking["address"]
        mesh.inbound(inbound["port"], workload, protocol=protocol, host=host)
    for outbound in networking.get("outbound") or []:
        host = outbound.get("address") or "127.0.0.1"
        mesh.outbound(outbound["port"], outbound["tags"]["kuma.io/service"], http2=True, host=host)
    if admin := (networking.get("admin") or {}).get("port"):
        mesh.check_health(admin, *workloads)
    mesh.apply = apply
    return mesh
