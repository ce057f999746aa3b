"""Envoy's configuration from a mesh: a pure function with a deterministic result.

What did not change is the same JSON as before, so that Envoy keeps the listener or cluster and its connections.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.standalone.mesh import ADMIN_HOST, SERVICE, Mesh, ServiceEndpoint, admin_port, takes_traffic
from kumadp.standalone.shapes import (
    HTTP,
    HTTP2,
    Json,
    file_source,
    http2_options,
    http_manager,
    listener,
    socket_address,
    stat_name,
    tcp_proxy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.resources.types import Inbound, Outbound

ADMIN_CLUSTER = "kuma_envoy_admin"
_RESOLVER = "type.googleapis.com/envoy.extensions.network.dns_resolver"


@dataclass(frozen=True, slots=True)
class DnsListener:
    """Where Envoy's DNS filter listens; ``resolvers`` answer what is not ours, empty: nobody does."""

    host: str
    port: int
    resolvers: tuple[str, ...]


@dataclass
class Generated:
    """Clusters, their endpoints and listeners by name, where each came from, and remarks."""

    clusters: dict[str, Json] = field(default_factory=dict)
    endpoints: dict[str, Json] = field(default_factory=dict)
    listeners: dict[str, Json] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def generate(
    mesh: Mesh, directory: Path, dns: DnsListener | None, unhealthy: frozenset[int] = frozenset()
) -> Generated:
    """The configuration of our Dataplane; ``unhealthy`` holds the inbound ports whose application failed its checks."""
    made = Generated()
    _admin(mesh, made)
    for index, inbound in enumerate(mesh.spec.networking.inbound):
        if inbound.state != "Ignored":
            _inbound(mesh, inbound, index, inbound.port not in unhealthy, directory, made)
    for index, outbound in enumerate(mesh.spec.networking.outbound):
        _outbound(mesh, outbound, index, directory, made)
    _ready(mesh, made)
    _prometheus(mesh, made)
    if dns is not None:
        made.listeners["kuma:dns"] = _dns(mesh, dns)
    return made


def local_cluster(mesh: Mesh, inbound: Inbound) -> tuple[str, str, int]:
    """Name, host and port of the application behind an inbound; the name is Kuma's ``localhost:<port>``."""
    host = inbound.service_address or inbound.address or mesh.spec.networking.address
    port = inbound.service_port or inbound.port
    return f"localhost:{port}" if host == "127.0.0.1" else f"localhost:{host}:{port}", host, port


def _where(mesh: Mesh, path: str) -> str:
    file, line = mesh.ours.where(path)
    return f"{file}:{line}: {path}" if line else f"{file}: {path}"


def _admin(mesh: Mesh, made: Generated) -> None:
    made.clusters[ADMIN_CLUSTER] = {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": _assignment(ADMIN_CLUSTER, [(ADMIN_HOST, admin_port(mesh.spec), None, 0)]),
    }


def _assignment(name: str, endpoints: list[tuple[str, int, tuple[str, int] | None, int]]) -> Json:
    listed = []
    for host, port, health_at, inbound_port in endpoints:
        endpoint: Json = {"address": socket_address(host, port)}
        if health_at is not None:
            endpoint["healthCheckConfig"] = {
                "address": socket_address(*health_at),
                "hostname": f"inbound-{inbound_port}",
            }
        elif inbound_port:
            endpoint["healthCheckConfig"] = {"disableActiveHealthCheck": True}
        listed.append({"endpoint": endpoint})
    return {"clusterName": name, "endpoints": [{"lbEndpoints": listed}] if listed else []}


def _eds_cluster(name: str, directory: Path, protocol: str) -> Json:
    cluster: Json = {
        "name": name,
        "type": "EDS",
        "connectTimeout": "5s",
        "edsClusterConfig": {"edsConfig": file_source(str(directory / endpoints_file(name)), str(directory))},
    }
    if protocol in HTTP2:
        cluster["typedExtensionProtocolOptions"] = http2_options()
    return cluster


def endpoints_file(cluster: str) -> str:
    """Name of the file that holds a cluster's endpoints."""
    return f"endpoints-{stat_name(cluster)}.json"


def _inbound(mesh: Mesh, inbound: Inbound, index: int, healthy: bool, directory: Path, made: Generated) -> None:
    path = f"networking.inbound[{index}]"
    cluster, host, port = local_cluster(mesh, inbound)
    address = inbound.address or mesh.spec.networking.address
    name = f"inbound:{address}:{inbound.port}"
    made.clusters[cluster] = _eds_cluster(cluster, directory, inbound.protocol)
    serves = healthy and takes_traffic(inbound)
    made.endpoints[cluster] = _assignment(cluster, [(host, port, None, 0)] if serves else [])
    if inbound.protocol in HTTP:
        route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s", "idleTimeout": "3600s"}}
        filters = [http_manager(stat_name(cluster), [route])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    made.listeners[name] = listener(name, address, inbound.port, filters, "INBOUND")
    made.origin[name] = made.origin[cluster] = _where(mesh, path)


def _outbound(mesh: Mesh, outbound: Outbound, index: int, directory: Path, made: Generated) -> None:
    path = f"networking.outbound[{index}]"
    service = outbound.tags[SERVICE]
    subset = ",".join(f"{key}={value}" for key, value in sorted(outbound.tags.items()) if key != SERVICE)
    cluster = f"{service}{{{subset}}}" if subset else service
    found = mesh.endpoints(outbound.tags)
    protocols = {endpoint.protocol for endpoint in found}
    protocol = next(iter(protocols)) if len(protocols) == 1 else "tcp"
    if not found:
        made.notes.append(f"{_where(mesh, path)}: no Dataplane offers {cluster} now; calls fail until one does")
        protocol = outbound.tags.get("kuma.io/protocol", "http")
    address = outbound.address or "127.0.0.1"
    name = f"outbound:{address}:{outbound.port}"
    made.clusters[cluster] = _outbound_cluster(cluster, found, protocol, directory)
    made.endpoints[cluster] = _assignment(
        cluster, [(endpoint.host, endpoint.port, endpoint.health_at, endpoint.port) for endpoint in found]
    )
    if protocol in HTTP:
        filters = [http_manager(stat_name(cluster), [_outbound_route(cluster)])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    made.listeners[name] = listener(name, address, outbound.port, filters, "OUTBOUND")
    made.origin[name] = made.origin[cluster] = _where(mesh, path)


def _outbound_route(cluster: str) -> Json:
    # The retries are those of Kuma's default MeshRetry (captured from 2.13.5).
    retry = {
        "retryOn": "gateway-error,connect-failure,refused-stream",
        "numRetries": 5,
        "perTryTimeout": "16s",
        "retryBackOff": {"baseInterval": "0.025s", "maxInterval": "0.250s"},
    }
    return {
        "match": {"prefix": "/"},
        "route": {"cluster": cluster, "timeout": "15s", "idleTimeout": "1800s", "retryPolicy": retry},
    }


def _outbound_cluster(name: str, found: tuple[ServiceEndpoint, ...], protocol: str, directory: Path) -> Json:
    cluster = _eds_cluster(name, directory, protocol)
    if any(not _is_ip(endpoint.host) for endpoint in found):
        # EDS takes addresses only: host names are resolved by Envoy, so their endpoints are part of the cluster.
        del cluster["edsClusterConfig"]
        cluster["type"] = "STRICT_DNS"
        cluster["loadAssignment"] = _assignment(name, [(e.host, e.port, None, 0) for e in found])
    elif any(endpoint.health_at for endpoint in found):
        cluster["healthChecks"] = [
            {
                "timeout": "1s",
                "interval": "1s",
                "noTrafficInterval": "1s",
                "unhealthyThreshold": 1,
                "healthyThreshold": 1,
                "httpHealthCheck": {"path": "/ready"},
            }
        ]
    cluster["outlierDetection"] = {"consecutiveGatewayFailure": 5, "enforcingConsecutiveGatewayFailure": 100}
    return cluster


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ready(mesh: Mesh, made: Generated) -> None:
    """Kuma's ``/ready`` on the data plane's address; also per inbound where an application is checked."""
    address, port = mesh.spec.networking.address, admin_port(mesh.spec)
    probed = [inbound for inbound in mesh.spec.networking.inbound if inbound.service_probe is not None]
    if address == ADMIN_HOST or not _is_ip(address):
        if probed:
            made.notes.append(
                f"{_where(mesh, 'networking.address')}: on {address} others cannot ask for the health of an inbound; "
                "they see failed requests only"
            )
        return
    filters = [_health_filter(local_cluster(mesh, inbound)[0], inbound.port) for inbound in probed]
    route = {"match": {"path": "/ready"}, "route": {"cluster": ADMIN_CLUSTER}}
    name = "kuma:envoy:admin"
    made.listeners[name] = listener(
        name, address, port, [http_manager("kuma_envoy_admin", [route], filters)], "INBOUND"
    )
    made.origin[name] = _where(mesh, "networking.admin.port")


def _health_filter(cluster: str, port: int) -> Json:
    return {
        "name": "envoy.filters.http.health_check",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck",
            "passThroughMode": False,
            "headers": [
                {"name": ":path", "stringMatch": {"exact": "/ready"}},
                {"name": ":authority", "stringMatch": {"exact": f"inbound-{port}"}},
            ],
            "clusterMinHealthyPercentages": {cluster: {"value": 1}},
        },
    }


def _prometheus(mesh: Mesh, made: Generated) -> None:
    metrics = mesh.spec.metrics
    if metrics is None or metrics.type != "prometheus":
        return
    port, path = int(metrics.conf.get("port") or 5670), str(metrics.conf.get("path") or "/metrics")
    route = {
        "match": {"path": path},
        "route": {"cluster": ADMIN_CLUSTER, "prefixRewrite": "/stats/prometheus?usedonly"},
    }
    name = "kuma:metrics:prometheus"
    manager = http_manager("kuma_metrics_prometheus", [route])
    made.listeners[name] = listener(name, mesh.spec.networking.address, port, [manager], "INBOUND")
    made.origin[name] = _where(mesh, "metrics.conf")


def _dns(mesh: Mesh, dns: DnsListener) -> Json:
    names: dict[str, set[str]] = {}
    for outbound in mesh.spec.networking.outbound:
        names.setdefault(f"{outbound.tags[SERVICE]}.mesh", set()).add(outbound.address or "127.0.0.1")
    domains = [
        {"name": name, "endpoint": {"addressList": {"address": sorted(addresses)}}, "answerTtl": "30s"}
        for name, addresses in sorted(names.items())
    ]
    config: Json = {
        "@type": "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        "statPrefix": "kuma_dns",
        "serverConfig": {"inlineDnsTable": {"virtualDomains": domains}},
    }
    if dns.resolvers:
        resolvers = [socket_address(host, 53) for host in dns.resolvers]
        config["clientConfig"] = {
            "maxPendingLookups": 256,
            "resolverTimeout": "2s",
            "typedDnsResolverConfig": {
                "name": "envoy.network.dns_resolver.cares",
                "typedConfig": {
                    "@type": f"{_RESOLVER}.cares.v3.CaresDnsResolverConfig",
                    "resolvers": resolvers,
                },
            },
        }
    return {
        "name": "kuma:dns",
        "address": socket_address(dns.host, dns.port, "UDP"),
        "enableReusePort": True,
        "trafficDirection": "OUTBOUND",
        "listenerFilters": [{"name": "envoy.filters.udp.dns_filter", "typedConfig": config}],
    }


def bootstrap(mesh: Mesh, directory: Path) -> Json:
    """The bootstrap: admin on loopback, clusters and listeners from files."""
    return {
        "node": {"id": f"{mesh.ours.mesh}.{mesh.ours.name}", "cluster": _service(mesh)},
        "admin": {"address": socket_address(ADMIN_HOST, admin_port(mesh.spec))},
        "dynamicResources": {
            "cdsConfig": file_source(str(directory / "clusters.json"), str(directory)),
            "ldsConfig": file_source(str(directory / "listeners.json"), str(directory)),
        },
        "layeredRuntime": {
            "layers": [{"name": "kumadp", "staticLayer": {"re2.max_program_size.error_level": 4294967295}}]
        },
    }


def _service(mesh: Mesh) -> str:
    networking = mesh.spec.networking
    if networking.gateway is not None:
        return networking.gateway.tags[SERVICE]
    return networking.inbound[0].service


def files(made: Generated) -> Mapping[str, Json]:
    """The file contents by name, in the order in which they are to be written: endpoints, clusters, listeners."""
    found = {
        endpoints_file(name): _resources("endpoint.v3.ClusterLoadAssignment", [cla])
        for name, cla in made.endpoints.items()
    }
    found["clusters.json"] = _resources("cluster.v3.Cluster", list(made.clusters.values()))
    found["listeners.json"] = _resources("listener.v3.Listener", list(made.listeners.values()))
    return found


def _resources(kind: str, items: list[Json]) -> Json:
    return {"resources": [{"@type": f"type.googleapis.com/envoy.config.{kind}", **item} for item in items]}
