"""Generates Envoy's configuration from a mesh: a pure function with a deterministic result.

The JSON of an unchanged listener or cluster is identical, so that Envoy keeps it and its connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.addresses import is_ip, with_port
from kumadp.host.work_dir import CLUSTERS_FILE, LISTENERS_FILE
from kumadp.resources.types import SERVICE
from kumadp.standalone.config_fragments import (
    HTTP,
    HTTP2,
    Json,
    assignment,
    file_source,
    http2_options,
    http_manager,
    listener,
    overload_manager,
    socket_address,
    stat_name,
    tcp_proxy,
)
from kumadp.standalone.generated_config import GeneratedConfig
from kumadp.standalone.mesh import ADMIN_HOST, Mesh, Offer, ServiceEndpoint, admin_port, takes_traffic
from kumadp.standalone.system_listeners import add_admin, add_dns, add_prometheus, add_ready
from kumadp.standalone.unsupported_fields import ignored_fields

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.resources.types import Inbound, Outbound
    from kumadp.standalone.generated_config import DnsListener

InboundKey = tuple[str, int]
# Each protocol with those below it, the most general last (Kuma 2.13: http and http2 have only tcp in common).
_STACKS = {"grpc": ("grpc", "http2", "tcp"), "http2": ("http2", "tcp"), "http": ("http", "tcp")}


def generate(mesh: Mesh, dns: DnsListener | None, unhealthy: frozenset[InboundKey] = frozenset()) -> GeneratedConfig:
    """Return the configuration of our Dataplane; ``unhealthy`` are the inbounds whose application fails its checks."""
    config = GeneratedConfig()
    add_admin(mesh, config)
    failed: list[Inbound] = []
    for index, inbound in enumerate(mesh.spec.networking.inbound):
        if inbound.service_probe is not None and inbound_key(mesh, inbound) in unhealthy:
            failed.append(inbound)
        if inbound.state != "Ignored":
            _inbound(mesh, inbound, index, inbound not in failed, config)
    for index, outbound in enumerate(mesh.spec.networking.outbound):
        _outbound(mesh, outbound, index, config)
    add_ready(mesh, failed, config)
    add_prometheus(mesh, config)
    if dns is not None:
        add_dns(mesh, dns, config)
    config.notes += [f"{mesh.where(path)}: {reason}" for path, reason in ignored_fields(mesh.spec)]
    return config


def inbound_key(mesh: Mesh, inbound: Inbound) -> InboundKey:
    """Return what identifies an inbound: address and port."""
    return mesh.inbound_address(inbound), inbound.port


def workload(mesh: Mesh, inbound: Inbound) -> tuple[str, int]:
    """Return host and port of the application (Kuma 2.13: serviceAddress, by default the inbound's address)."""
    return inbound.service_address or mesh.inbound_address(inbound), inbound.service_port or inbound.port


def _cluster(name: str, endpoints: list[Json], protocol: str) -> Json:
    # Endpoints are part of the cluster: a separate file for each would need an inotify instance, of which Linux grants
    # 128 to a user; without one Envoy aborts.
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connectTimeout": "5s",
        "loadAssignment": assignment(name, endpoints),
    }
    if protocol in HTTP2:
        cluster["typedExtensionProtocolOptions"] = http2_options()
    return cluster


def _inbound(mesh: Mesh, inbound: Inbound, index: int, healthy: bool, config: GeneratedConfig) -> None:
    host, port = workload(mesh, inbound)
    address = mesh.inbound_address(inbound)
    name = f"inbound:{with_port(address, inbound.port)}"
    cluster = f"localhost:{port}"
    if cluster in config.clusters:
        # Another inbound of the same application has Kuma's name; its protocol and probe may differ.
        cluster = f"{cluster}@{with_port(address, inbound.port)}"
    serves = healthy and takes_traffic(inbound)
    endpoints = [{"address": socket_address(host, port)}] if serves else []
    config.clusters[cluster] = _cluster(cluster, endpoints, inbound.protocol)
    if inbound.protocol in HTTP:
        route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s", "idleTimeout": "3600s"}}
        filters = [http_manager(stat_name(cluster), [route])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    config.listeners[name] = listener(name, address, inbound.port, filters, "INBOUND")
    config.origin[name] = config.origin[cluster] = mesh.where(f"networking.inbound[{index}].port")


def _outbound(mesh: Mesh, outbound: Outbound, index: int, config: GeneratedConfig) -> None:
    where = mesh.where(f"networking.outbound[{index}].port")
    cluster = _outbound_name(mesh, outbound)
    offers = mesh.offers(outbound)
    endpoints = sorted({offer.endpoint for offer in offers if offer.ready})
    if not endpoints:
        reason = "no Dataplane that offers it is ready" if offers else f"no Dataplane offers it{_ports(mesh, outbound)}"
        config.notes.append(f"{where}: {cluster}: {reason} now; requests fail until there is one")
    protocol = _common_protocol(offers, outbound)
    address = outbound.address or "127.0.0.1"
    name = f"outbound:{with_port(address, outbound.port)}"
    config.clusters[cluster] = _outbound_cluster(cluster, endpoints, protocol)
    if protocol in HTTP:
        filters = [http_manager(stat_name(cluster), [_outbound_route(cluster)])]
    else:
        filters = [tcp_proxy(stat_name(cluster), cluster)]
    config.listeners[name] = listener(name, address, outbound.port, filters, "OUTBOUND")
    config.origin[name] = config.origin[cluster] = where
    if config.clusters[cluster]["type"] == "STRICT_DNS" and any(endpoint.health_name for endpoint in endpoints):
        config.notes.append(f"{where}: {cluster}: an endpoint has a host name, so no endpoint is health-checked")


def _outbound_name(mesh: Mesh, outbound: Outbound) -> str:
    """Return the name of the outbound's cluster, for a reference as Kuma has it (unified naming), but for the zone."""
    reference = outbound.backend_ref
    if reference is not None:
        return f"kri_msvc_{mesh.ours.mesh}___{outbound.title}_{reference.port}"
    subset = ",".join(f"{key}={value}" for key, value in sorted(outbound.tags.items()) if key != SERVICE)
    return f"{outbound.title}{{{subset}}}" if subset else outbound.title


def _ports(mesh: Mesh, outbound: Outbound) -> str:
    """Return the ports at which there is the service that a reference names, as text; empty if there is none."""
    reference = outbound.backend_ref
    offers = mesh.by_service.get(reference.name, ()) if reference is not None else ()
    ports = sorted({offer.port for offer in offers})
    return f" at port {reference.port}, its inbounds have {', '.join(map(str, ports))}" if ports and reference else ""


def _common_protocol(offers: tuple[Offer, ...], outbound: Outbound) -> str:
    """Return the protocol that all endpoints of a service support, ready or not: health never changes a listener.

    If there are none, it is the protocol of the outbound, http by default: a 503 is clearer than a closed connection.
    """
    protocols = {offer.protocol for offer in offers}
    if not protocols:
        return outbound.tags.get("kuma.io/protocol", "http")
    stacks = [_STACKS.get(protocol, ("tcp",)) for protocol in sorted(protocols)]
    return next(common for common in stacks[0] if all(common in stack for stack in stacks))


def _service_endpoint(endpoint: ServiceEndpoint) -> Json:
    check: Json = {"disableActiveHealthCheck": True}
    if endpoint.health_name:
        check = {"address": socket_address(*endpoint.health_at), "hostname": endpoint.health_name}
    return {"address": socket_address(endpoint.host, endpoint.port), "healthCheckConfig": check}


def _outbound_route(cluster: str) -> Json:
    # The retries of Kuma's default MeshRetry (captured from 2.13.5).
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


def _outbound_cluster(name: str, endpoints: list[ServiceEndpoint], protocol: str) -> Json:
    if any(not is_ip(host) for endpoint in endpoints for host in (endpoint.host, endpoint.health_at[0]) if host):
        by_name = [{"address": socket_address(endpoint.host, endpoint.port)} for endpoint in endpoints]
        return {**_cluster(name, by_name, protocol), "type": "STRICT_DNS"}
    cluster = _cluster(name, [_service_endpoint(endpoint) for endpoint in endpoints], protocol)
    if any(endpoint.health_name for endpoint in endpoints):
        # 0 disables panic mode, in which Envoy sends requests to unhealthy endpoints too.
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
    """Return the bootstrap: admin on loopback, clusters and listeners from files.

    ``memory``: bytes that Envoy and kumadp may use together, 0 for no limit.
    """
    return {
        "node": {"id": f"{mesh.ours.mesh}.{mesh.ours.name}", "cluster": mesh.service},
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
    """Return the content of ``clusters.json``."""
    return resources("cluster.v3.Cluster", list(clusters.values()))


def listener_file(config: GeneratedConfig) -> Json:
    """Return the content of ``listeners.json``."""
    return resources("listener.v3.Listener", list(config.listeners.values()))


def resources(kind: str, items: list[Json]) -> Json:
    """Return a discovery response as Envoy reads it from a file."""
    return {"resources": [{"@type": f"type.googleapis.com/envoy.config.{kind}", **item} for item in items]}
