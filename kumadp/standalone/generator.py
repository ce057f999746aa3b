"""Envoy's configuration from a mesh: a pure function with a deterministic result.

What did not change is the same JSON as before, so that Envoy keeps the listener or cluster and its connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.addresses import is_ip
from kumadp.host.work_dir import CLUSTERS_FILE, LISTENERS_FILE
from kumadp.standalone.config_fragments import (
    HTTP,
    HTTP2,
    Json,
    assignment,
    file_source,
    http2_options,
    http_manager,
    joined,
    listener,
    overload_manager,
    socket_address,
    stat_name,
    tcp_proxy,
)
from kumadp.standalone.generated_config import GeneratedConfig
from kumadp.standalone.mesh import ADMIN_HOST, SERVICE, Mesh, Offer, ServiceEndpoint, admin_port, takes_traffic
from kumadp.standalone.system_listeners import add_admin, add_dns, add_prometheus, add_ready
from kumadp.standalone.unsupported_fields import remarks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.resources.types import Inbound, Outbound
    from kumadp.standalone.generated_config import DnsListener

InboundKey = tuple[str, int]
# What each protocol is carried by, widest last (Kuma 2.13: http and http2 have only tcp in common).
_STACKS = {"grpc": ("grpc", "http2", "tcp"), "http2": ("http2", "tcp"), "http": ("http", "tcp")}


def generate(mesh: Mesh, dns: DnsListener | None, unhealthy: frozenset[InboundKey] = frozenset()) -> GeneratedConfig:
    """The configuration of our Dataplane; ``unhealthy`` holds the inbounds whose application failed its checks."""
    made = GeneratedConfig()
    add_admin(mesh, made)
    failed: list[Inbound] = []
    for index, inbound in enumerate(mesh.spec.networking.inbound):
        if inbound.service_probe is not None and inbound_key(mesh, inbound) in unhealthy:
            failed.append(inbound)
        if inbound.state != "Ignored":
            _inbound(mesh, inbound, index, inbound not in failed, made)
    for index, outbound in enumerate(mesh.spec.networking.outbound):
        _outbound(mesh, outbound, index, made)
    add_ready(mesh, failed, made)
    add_prometheus(mesh, made)
    if dns is not None:
        add_dns(mesh, dns, made)
    made.notes += [f"{mesh.where(path)}: {remark}" for path, remark in remarks(mesh.spec)]
    return made


def inbound_key(mesh: Mesh, inbound: Inbound) -> InboundKey:
    """What tells one inbound from another."""
    return mesh.inbound_address(inbound), inbound.port


def workload(mesh: Mesh, inbound: Inbound) -> tuple[str, int]:
    """Host and port of the application behind an inbound (Kuma 2.13: serviceAddress, else where the inbound is)."""
    return inbound.service_address or mesh.inbound_address(inbound), inbound.service_port or inbound.port


def _cluster(name: str, endpoints: list[Json], protocol: str) -> Json:
    # Endpoints are part of the cluster: by files of their own each would cost Envoy an inotify instance, of which
    # Linux grants 128 to a user, and without one Envoy aborts.
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connectTimeout": "5s",
        "loadAssignment": assignment(name, endpoints),
    }
    if protocol in HTTP2:
        cluster["typedExtensionProtocolOptions"] = http2_options()
    return cluster


def _inbound(mesh: Mesh, inbound: Inbound, index: int, healthy: bool, made: GeneratedConfig) -> None:
    host, port = workload(mesh, inbound)
    address = mesh.inbound_address(inbound)
    name = f"inbound:{joined(address, inbound.port)}"
    cluster = f"localhost:{port}"
    if cluster in made.clusters:
        # Kuma's name is taken by another inbound of the same application, which may speak or be checked otherwise.
        cluster = f"{cluster}@{joined(address, inbound.port)}"
    serves = healthy and takes_traffic(inbound)
    endpoints = [{"address": socket_address(host, port)}] if serves else []
    made.clusters[cluster] = _cluster(cluster, endpoints, inbound.protocol)
    if inbound.protocol in HTTP:
        route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s", "idleTimeout": "3600s"}}
        filters = [http_manager(stat_name(cluster), [route])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    made.listeners[name] = listener(name, address, inbound.port, filters, "INBOUND")
    made.origin[name] = made.origin[cluster] = mesh.where(f"networking.inbound[{index}].port")


def _outbound(mesh: Mesh, outbound: Outbound, index: int, made: GeneratedConfig) -> None:
    where = mesh.where(f"networking.outbound[{index}].port")
    service = outbound.tags[SERVICE]
    subset = ",".join(f"{key}={value}" for key, value in sorted(outbound.tags.items()) if key != SERVICE)
    cluster = f"{service}{{{subset}}}" if subset else service
    offers = mesh.offers(outbound.tags)
    found = sorted({offer.endpoint for offer in offers if offer.ready})
    if not found:
        why = "no Dataplane that offers it is ready" if offers else "no Dataplane offers it"
        made.notes.append(f"{where}: {cluster}: {why} now; calls fail until one is there")
    protocol = _common_protocol(offers, outbound)
    address = outbound.address or "127.0.0.1"
    name = f"outbound:{joined(address, outbound.port)}"
    made.clusters[cluster] = _outbound_cluster(cluster, found, protocol)
    if protocol in HTTP:
        filters = [http_manager(stat_name(cluster), [_outbound_route(cluster)])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    made.listeners[name] = listener(name, address, outbound.port, filters, "OUTBOUND")
    made.origin[name] = made.origin[cluster] = where
    if made.clusters[cluster]["type"] == "STRICT_DNS" and any(endpoint.health_name for endpoint in found):
        made.notes.append(f"{where}: {cluster}: an endpoint has a host name, so the health of none is asked for")


def _common_protocol(offers: tuple[Offer, ...], outbound: Outbound) -> str:
    """What all who offer a service speak, ready or not, so that health alone never changes a listener.

    Where nobody offers it, what the outbound says, else http: a 503 tells more than a closed connection.
    """
    protocols = {offer.protocol for offer in offers}
    if not protocols:
        return outbound.tags.get("kuma.io/protocol", "http")
    stacks = [_STACKS.get(protocol, ("tcp",)) for protocol in sorted(protocols)]
    return next(carrier for carrier in stacks[0] if all(carrier in stack for stack in stacks))


def _service_endpoint(endpoint: ServiceEndpoint) -> Json:
    check: Json = {"disableActiveHealthCheck": True}
    if endpoint.health_name:
        check = {"address": socket_address(*endpoint.health_at), "hostname": endpoint.health_name}
    return {"address": socket_address(endpoint.host, endpoint.port), "healthCheckConfig": check}


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


def _outbound_cluster(name: str, found: list[ServiceEndpoint], protocol: str) -> Json:
    if any(not is_ip(host) for endpoint in found for host in (endpoint.host, endpoint.health_at[0]) if host):
        by_name = [{"address": socket_address(endpoint.host, endpoint.port)} for endpoint in found]
        return {**_cluster(name, by_name, protocol), "type": "STRICT_DNS"}
    cluster = _cluster(name, [_service_endpoint(endpoint) for endpoint in found], protocol)
    if any(endpoint.health_name for endpoint in found):
        # Where all are unhealthy nobody is asked: Envoy's panic mode would ask those too.
        cluster["commonLbConfig"] = {"healthyPanicThreshold": {"value": 0}}
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
    return cluster


def bootstrap(mesh: Mesh, directory: Path, memory: int = 0) -> Json:
    """The bootstrap: admin on loopback, clusters and listeners from files.

    ``memory``: bytes that Envoy and all beside it may use, 0 for no limit.
    """
    networking = mesh.spec.networking
    service = networking.gateway.tags[SERVICE] if networking.gateway is not None else networking.inbound[0].service
    return {
        "node": {"id": f"{mesh.ours.mesh}.{mesh.ours.name}", "cluster": service},
        "admin": {"address": socket_address(ADMIN_HOST, admin_port(mesh.spec))},
        "dynamicResources": {
            "cdsConfig": file_source(str(directory / CLUSTERS_FILE)),
            "ldsConfig": file_source(str(directory / LISTENERS_FILE)),
        },
        "layeredRuntime": {
            "layers": [{"name": "kumadp", "staticLayer": {"re2.max_program_size.error_level": 4294967295}}]
        },
        **({"overloadManager": overload_manager(memory)} if memory else {}),
    }


def cluster_file(clusters: Mapping[str, Json]) -> Json:
    """The content of ``clusters.json``."""
    return resources("cluster.v3.Cluster", list(clusters.values()))


def listener_file(made: GeneratedConfig) -> Json:
    """The content of ``listeners.json``."""
    return resources("listener.v3.Listener", list(made.listeners.values()))


def resources(kind: str, items: list[Json]) -> Json:
    """A discovery answer as Envoy reads it from a file."""
    return {"resources": [{"@type": f"type.googleapis.com/envoy.config.{kind}", **item} for item in items]}
