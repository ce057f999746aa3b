"""Envoy's resources: from JSON to the bytes of a `google.protobuf.Any`, and their parts."""

from __future__ import annotations

from typing import Any

# Imported for their descriptors: json_format finds the type of an "@type" among what is loaded.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.filters.udp.dns_filter.v3 import dns_filter_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf import any_pb2, json_format

Tree = dict[str, Any]

_PREFIX = "type.googleapis.com/"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

# In this order a control plane sends what changed together (Envoy, "eventual consistency considerations").
TYPES = (CLUSTER, ENDPOINTS, SECRET, LISTENER)

_MESSAGES = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    SECRET: secret_pb2.Secret,
}
_ADS = {"ads": {}, "resourceApiVersion": "V3"}


def encode(type_url: str, tree: Tree) -> bytes:
    """The serialized Any of a resource in protobuf's JSON form; raises json_format.ParseError."""
    message = json_format.ParseDict(tree, _MESSAGES[type_url]())
    encoded: bytes = any_pb2.Any(
        type_url=type_url, value=message.SerializeToString(deterministic=True)
    ).SerializeToString()
    return encoded


def name_of(type_url: str, tree: Tree) -> str:
    """Return the name by which a resource is subscribed to."""
    return str(tree["clusterName" if type_url == ENDPOINTS else "name"])


def address(host: str, port: int) -> Tree:
    return {"socketAddress": {"address": host, "portValue": port}}


def static_cluster(name: str, host: str, port: int) -> Tree:
    """A cluster with one endpoint, as the one in front of the application."""
    return {
        "name": name,
        "type": "STATIC",
        "connectTimeout": "5s",
        "altStatName": name.replace(":", "_"),
        "loadAssignment": endpoints(name, [(host, port)]),
    }


def eds_cluster(name: str, tls: Tree | None = None, *, http2: bool = False) -> Tree:
    """A cluster whose endpoints come by EDS and speak HTTP/1.1 or HTTP/2."""
    cluster: Tree = {
        "name": name,
        "type": "EDS",
        "connectTimeout": "5s",
        "edsClusterConfig": {"edsConfig": _ADS},
    }
    if tls is not None:
        cluster["transportSocket"] = _transport_socket("UpstreamTlsContext", tls)
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        explicit = {"@type": _PREFIX + options, "explicitHttpConfig": {"http2ProtocolOptions": {}}}
        cluster["typedExtensionProtocolOptions"] = {options: explicit}
    return cluster


def endpoints(cluster: str, addresses: list[tuple[str, int]]) -> Tree:
    """The endpoints of a cluster."""
    members = [{"endpoint": {"address": address(host, port)}} for host, port in addresses]
    return {"clusterName": cluster, "endpoints": [{"lbEndpoints": members}] if members else []}


def http_listener(name: str, host: str, port: int, cluster: str, direction: str, tls: Tree | None = None) -> Tree:
    """A listener that leads HTTP to a cluster, its route inlined as Kuma does."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "15s"}}
    manager = {
        "@type": _PREFIX + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "statPrefix": cluster.replace(":", "_"),
        "routeConfig": {
            "name": name,
            "virtualHosts": [{"name": cluster, "domains": ["*"], "routes": [route]}],
            "validateClusters": False,
        },
        "httpFilters": [
            {
                "name": "envoy.filters.http.router",
                "typedConfig": {"@type": _PREFIX + "envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return _listener(name, host, port, direction, "envoy.filters.network.http_connection_manager", manager, tls)


def tcp_listener(name: str, host: str, port: int, cluster: str, direction: str, tls: Tree | None = None) -> Tree:
    """A listener that leads bytes to a cluster."""
    proxy = {
        "@type": _PREFIX + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "statPrefix": cluster.replace(":", "_"),
        "cluster": cluster,
    }
    return _listener(name, host, port, direction, "envoy.filters.network.tcp_proxy", proxy, tls)


def dns_listener(port: int, names: dict[str, list[str]]) -> Tree:
    """Envoy's DNS filter on loopback, which knows these names with their addresses."""
    domains = [{"name": name, "endpoint": {"addressList": {"address": of_name}}} for name, of_name in names.items()]
    config = {
        "@type": _PREFIX + "envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        "statPrefix": "kuma_dns",
        "serverConfig": {"inlineDnsTable": {"virtualDomains": domains}},
    }
    place = address("127.0.0.1", port)
    place["socketAddress"]["protocol"] = "UDP"
    return {
        "name": "kuma:dns",
        "address": place,
        "enableReusePort": True,
        "trafficDirection": "OUTBOUND",
        "listenerFilters": [{"name": "envoy.filters.udp.dns_filter", "typedConfig": config}],
    }


def _listener(
    name: str, host: str, port: int, direction: str, filter_name: str, config: Tree, tls: Tree | None
) -> Tree:
    chain: Tree = {"filters": [{"name": filter_name, "typedConfig": config}]}
    if tls is not None:
        chain["transportSocket"] = _transport_socket("DownstreamTlsContext", tls)
    return {
        "name": name,
        "address": address(host, port),
        "trafficDirection": direction,
        "filterChains": [chain],
        # As Kuma's inbounds: one socket, which a hot restart hands over.
        "enableReusePort": False,
    }


def mutual_tls(identity: str, authority: str) -> Tree:
    """Common TLS context whose own certificate and whose trust come by SDS."""
    return {
        "tlsCertificateSdsSecretConfigs": [{"name": identity, "sdsConfig": _ADS}],
        "validationContextSdsSecretConfig": {"name": authority, "sdsConfig": _ADS},
    }


def _transport_socket(context: str, common: Tree) -> Tree:
    config: Tree = {
        "@type": f"{_PREFIX}envoy.extensions.transport_sockets.tls.v3.{context}",
        "commonTlsContext": common,
    }
    if context == "DownstreamTlsContext":
        config["requireClientCertificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typedConfig": config}


def identity_secret(name: str, chain: str, key: str) -> Tree:
    """A certificate with its private key, both PEM."""
    return {
        "name": name,
        "tlsCertificate": {"certificateChain": {"inlineString": chain}, "privateKey": {"inlineString": key}},
    }


def authority_secret(name: str, ca: str) -> Tree:
    """What certificates are checked against, PEM."""
    return {"name": name, "validationContext": {"trustedCa": {"inlineString": ca}}}
