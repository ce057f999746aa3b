"""Fragments of Envoy configuration, as dictionaries in protobuf's JSON form."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Addresses that Envoy regards as internal: private networks and loopback (RFC 1918, RFC 4193).
_INTERNAL = [("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("127.0.0.0", 8), ("fd00::", 8), ("::1", 128)]
HTTP2 = frozenset({"http2", "grpc"})
HTTP = frozenset({"http"}) | HTTP2


def socket_address(host: str, port: int, protocol: str = "TCP") -> Json:
    """Return a socket address."""
    address: Json = {"address": host, "portValue": port}
    if protocol != "TCP":
        address["protocol"] = protocol
    return {"socketAddress": address}


def listener(name: str, host: str, port: int, filters: list[Json], direction: str) -> Json:
    """Return a TCP listener. One socket for all workers, as in Kuma, so that a port in use is always detected."""
    return {
        "name": name,
        "address": socket_address(host, port),
        "filterChains": [{"filters": filters}],
        "trafficDirection": direction,
        "enableReusePort": False,
    }


def http_manager(stat_prefix: str, routes: list[Json]) -> Json:
    """Return an HTTP connection manager with inline routes; idle and stream timeouts as in Kuma (2.13)."""
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typedConfig": {
            "@type": _HCM,
            "statPrefix": stat_prefix,
            "routeConfig": {
                "name": stat_prefix,
                "virtualHosts": [{"name": stat_prefix, "domains": ["*"], "routes": routes}],
                "validateClusters": False,
            },
            "httpFilters": [_ROUTER],
            "internalAddressConfig": {
                "cidrRanges": [{"addressPrefix": prefix, "prefixLen": length} for prefix, length in _INTERNAL]
            },
            "commonHttpProtocolOptions": {"idleTimeout": "3600s"},
            "streamIdleTimeout": "1800s",
            "upgradeConfigs": [{"upgradeType": "websocket"}],
        },
    }


def tcp_proxy(stat_prefix: str, cluster: str) -> Json:
    """Return a TCP proxy filter."""
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typedConfig": {"@type": _TCP, "statPrefix": stat_prefix, "cluster": cluster, "idleTimeout": "3600s"},
    }


def http2_options() -> Json:
    """Return the options of a cluster with HTTP/2 upstream."""
    return {_HTTP: {"@type": f"type.googleapis.com/{_HTTP}", "explicitHttpConfig": {"http2ProtocolOptions": {}}}}


def file_source(path: str) -> Json:
    """Return a file as configuration source. Envoy reads it again when a file is renamed to this path."""
    return {"resourceApiVersion": "V3", "pathConfigSource": {"path": path}}


def stat_name(text: str) -> str:
    """Return the text as a name that is safe in statistics."""
    return "".join(letter if (letter.isascii() and letter.isalnum()) or letter in "-_" else "_" for letter in text)


def assignment(name: str, endpoints: list[Json]) -> Json:
    """Return the endpoints of a cluster, which may be none."""
    return {
        "clusterName": name,
        "endpoints": [{"lbEndpoints": [{"endpoint": endpoint} for endpoint in endpoints]}] if endpoints else [],
    }


def overload_manager(memory: int) -> Json:
    """Return an overload manager for a ``memory`` limit in bytes (Envoy docs: overload manager).

    Envoy releases memory, then rejects requests, before the kernel kills it. A fifth is left for memory outside
    Envoy's heap.
    """
    heap = "envoy.resource_monitors.fixed_heap"
    kind = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
    actions = {"shrink_heap": 0.95, "stop_accepting_requests": 0.98}
    return {
        "refreshInterval": "0.25s",
        "resourceMonitors": [{"name": heap, "typedConfig": {"@type": kind, "maxHeapSizeBytes": memory * 4 // 5}}],
        "actions": [
            {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": heap, "threshold": {"value": at}}]}
            for name, at in actions.items()
        ],
    }
