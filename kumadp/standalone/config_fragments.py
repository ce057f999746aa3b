"""Small pieces of Envoy configuration, as dictionaries in protobuf's JSON form."""

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
# Addresses that Envoy takes as its own side's: private networks and loopback (RFC 1918, RFC 4193).
_INTERNAL = [("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("127.0.0.0", 8), ("fd00::", 8), ("::1", 128)]
HTTP2 = frozenset({"http2", "grpc"})
HTTP = frozenset({"http"}) | HTTP2


def socket_address(host: str, port: int, protocol: str = "TCP") -> Json:
    """A socket address."""
    found: Json = {"address": host, "portValue": port}
    if protocol != "TCP":
        found["protocol"] = protocol
    return {"socketAddress": found}


def listener(name: str, host: str, port: int, filters: list[Json], direction: str) -> Json:
    """A TCP listener. One socket for all workers, as Kuma's listeners, so that a taken port is always seen."""
    return {
        "name": name,
        "address": socket_address(host, port),
        "filterChains": [{"filters": filters}],
        "trafficDirection": direction,
        "enableReusePort": False,
    }


def http_manager(stat_prefix: str, routes: list[Json]) -> Json:
    """An HTTP connection manager with routes of its own; idle and stream timeouts as Kuma sets them (2.13)."""
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
    """A TCP proxy filter."""
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typedConfig": {"@type": _TCP, "statPrefix": stat_prefix, "cluster": cluster, "idleTimeout": "3600s"},
    }


def http2_options() -> Json:
    """Makes a cluster speak HTTP/2 upstream."""
    return {_HTTP: {"@type": f"type.googleapis.com/{_HTTP}", "explicitHttpConfig": {"http2ProtocolOptions": {}}}}


def file_source(path: str) -> Json:
    """A configuration source that is a file. Envoy reads it again when a file is renamed into its place."""
    return {"resourceApiVersion": "V3", "pathConfigSource": {"path": path}}


def stat_name(text: str) -> str:
    """A name that is safe in statistics."""
    return "".join(letter if (letter.isascii() and letter.isalnum()) or letter in "-_" else "_" for letter in text)


def assignment(name: str, endpoints: list[Json]) -> Json:
    """The endpoints of a cluster; none is a good answer too."""
    return {
        "clusterName": name,
        "endpoints": [{"lbEndpoints": [{"endpoint": endpoint} for endpoint in endpoints]}] if endpoints else [],
    }


def joined(host: str, port: int) -> str:
    """``host:port``, brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def overload_manager(memory: int) -> Json:
    """Envoy gives memory back, then refuses requests, before the kernel kills for want of it (Envoy docs: overload
    manager). A fifth of the ``memory`` (bytes) is left to what is no heap of Envoy's.
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
