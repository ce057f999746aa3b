"""Allowlist of static resources that keep Envoy's admin private.

A bootstrap with a static listener that others can reach may hold nothing else: Envoy has dozens of cluster types,
filters and transport sockets that connect to an address of the peer's choice, and more with each release, so a list of
those that do would never be complete. Names are those of Envoy 1.40's API (envoy/config/bootstrap/v3/bootstrap.proto).
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from kumadp.addresses import is_ip
from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.bootstrap.fields import get, items
from kumadp.bootstrap.spelling import json_name
from kumadp.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin

_TYPES = "type.googleapis.com/"
_TCP_PROXY = f"{_TYPES}envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP = f"{_TYPES}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPES}envoy.extensions.filters.http.router.v3.Router"
_TLS_INSPECTOR = f"{_TYPES}envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_HTTP_INSPECTOR = f"{_TYPES}envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
_DOWNSTREAM_TLS = f"{_TYPES}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_UPSTREAM_TLS = f"{_TYPES}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FILE_LOG = f"{_TYPES}envoy.extensions.access_loggers.file.v3.FileAccessLog"
_STDOUT_LOG = f"{_TYPES}envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"

# Types of clusters whose endpoints are in the bootstrap: STATIC, STRICT_DNS, LOGICAL_DNS.
_LISTED = ("STATIC", "STRICT_DNS", "LOGICAL_DNS", 0, 1, 2)


class _Any(Struct, frozen=True):
    """Any value: the field cannot lead to the admin."""


class _OneOf(Struct, frozen=True):
    """Exactly one of these values."""

    values: tuple[object, ...]


class _List(Struct, frozen=True):
    """A list of one shape."""

    item: Any


class _Typed(Struct, frozen=True):
    """A google.protobuf.Any of one of these types, each with the shape of its fields."""

    types: Mapping[str, Mapping[str, Any]]


_ANY = _Any()


def _fields(*free: str, **shaped: Any) -> dict[str, Any]:
    return {**dict.fromkeys(free, _ANY), **shaped}


def _extension(types: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return _fields("name", typedConfig=_Typed(types))


_ADDRESS = _fields(
    pipe=_fields("path", "mode"),
    socketAddress=_fields("address", "portValue", protocol=_OneOf(("TCP", 0))),
)
_MORE_ADDRESSES = _List(_fields("socketOptions", address=_ADDRESS))
_LOGS = _List(
    _extension({_FILE_LOG: _fields("path", "format", "jsonFormat", "logFormat"), _STDOUT_LOG: _fields("logFormat")})
)
_WEIGHTED = _fields("totalWeight", clusters=_List(_fields("name", "weight")))
_TO_CLUSTER = _fields(
    "cluster", "timeout", "idleTimeout", "prefixRewrite", "hostRewriteLiteral", "autoHostRewrite",
    "appendXForwardedHost", "priority", "hashPolicy", "maxStreamDuration", "maxGrpcTimeout", "regexRewrite",
    weightedClusters=_WEIGHTED,
)  # fmt: skip
_HEADERS = ("requestHeadersToAdd", "requestHeadersToRemove", "responseHeadersToAdd", "responseHeadersToRemove")
_ROUTE = _fields(
    "name", "match", "redirect", "metadata", "decorator", "statPrefix", *_HEADERS,
    route=_TO_CLUSTER,
    directResponse=_fields("status", body=_fields("inlineString", "inlineBytes")),
)  # fmt: skip
_ROUTES = _fields(
    "name", "validateClusters", "internalOnlyHeaders", "mostSpecificHeaderMutationsWins", *_HEADERS,
    virtualHosts=_List(_fields("name", "domains", "requireTls", *_HEADERS, routes=_List(_ROUTE))),
)  # fmt: skip
_HTTP_MANAGER = _fields(
    "statPrefix", "codecType", "addUserAgent", "commonHttpProtocolOptions", "httpProtocolOptions",
    "http2ProtocolOptions", "serverName", "serverHeaderTransformation", "maxRequestHeadersKb", "streamIdleTimeout",
    "requestTimeout",
    "requestHeadersTimeout", "drainTimeout", "delayedCloseTimeout", "useRemoteAddress", "xffNumTrustedHops",
    "skipXffAppend", "via", "generateRequestId", "preserveExternalRequestId", "forwardClientCertDetails",
    "setCurrentClientCertDetails", "proxy100Continue", "normalizePath", "mergeSlashes", "pathWithEscapedSlashesAction",
    "stripAnyHostPort", "stripMatchingHostPort",
    accessLog=_LOGS,
    routeConfig=_ROUTES,
    httpFilters=_List(_extension({_ROUTER: _fields("dynamicStats", "suppressEnvoyHeaders", "startChildSpan")})),
)  # fmt: skip
_CHAIN = _fields(
    "name", "filterChainMatch", "metadata", "transportSocketConnectTimeout",
    transportSocket=_extension(
        {_DOWNSTREAM_TLS: _fields("commonTlsContext", "requireClientCertificate", "requireSni", "sessionTimeout")}
    ),
    filters=_List(
        _extension({
            _TCP_PROXY: _fields(
                "statPrefix", "cluster", "idleTimeout", "maxConnectAttempts", "maxDownstreamConnectionDuration",
                weightedClusters=_WEIGHTED, accessLog=_LOGS,
            ),
            _HTTP: _HTTP_MANAGER,
        })
    ),
)  # fmt: skip
_LISTENER = _fields(
    "name", "statPrefix", "bindToPort", "perConnectionBufferLimitBytes", "metadata", "drainType",
    "listenerFiltersTimeout", "continueOnListenerFiltersTimeout", "transparent", "freebind", "tcpFastOpenQueueLength",
    "trafficDirection", "connectionBalanceConfig", "reusePort", "enableReusePort", "enableMptcp", "tcpBacklogSize",
    "ignoreGlobalConnLimit",
    address=_ADDRESS,
    additionalAddresses=_MORE_ADDRESSES,
    accessLog=_LOGS,
    filterChains=_List(_CHAIN),
    defaultFilterChain=_CHAIN,
    listenerFilters=_List(_extension({_TLS_INSPECTOR: _fields("enableJa3Fingerprinting"), _HTTP_INSPECTOR: {}})),
)  # fmt: skip
_ENDPOINT = _fields(
    "healthStatus", "metadata", "loadBalancingWeight",
    endpoint=_fields("hostname", address=_ADDRESS, additionalAddresses=_List(_fields(address=_ADDRESS))),
)  # fmt: skip
_CLUSTER = _fields(
    "name", "altStatName", "connectTimeout", "perConnectionBufferLimitBytes", "lbPolicy", "circuitBreakers",
    "http2ProtocolOptions", "httpProtocolOptions", "commonHttpProtocolOptions", "dnsRefreshRate",
    "dnsFailureRefreshRate", "dnsJitter", "respectDnsTtl", "dnsLookupFamily", "waitForWarmOnInit", "outlierDetection",
    "cleanupInterval", "metadata", "upstreamConnectionOptions", "closeConnectionsOnHostHealthFailure",
    "ignoreHealthOnHostRemoval", "commonLbConfig", "trackTimeoutBudgets", "trackClusterStats",
    type=_OneOf(_LISTED),
    transportSocket=_extension(
        {_UPSTREAM_TLS: _fields("commonTlsContext", "sni", "allowRenegotiation", "maxSessionKeys", "autoHostSni")}
    ),
    typedExtensionProtocolOptions={
        _HTTP_OPTIONS: _Typed({
            _TYPES + _HTTP_OPTIONS: _fields(
                "commonHttpProtocolOptions", "upstreamHttpProtocolOptions", "explicitHttpConfig",
                "useDownstreamProtocolConfig",
            )
        })
    },
    loadAssignment=_fields(
        "clusterName", "policy",
        endpoints=_List(
            _fields("locality", "loadBalancingWeight", "priority", "proximity", lbEndpoints=_List(_ENDPOINT))
        ),
    ),
)  # fmt: skip
_TOP = _fields(
    "node", "nodeContextParams", "admin", "dynamicResources", "hdsConfig", "flagsPath", "statsConfig",
    "statsFlushInterval", "statsFlushOnAdmin", "layeredRuntime", "overloadManager", "defaultRegexEngine",
    "useTcpForDnsLookups", "enableDispatcherStats", "headerPrefix", "statsServerVersionOverride",
    "deferredStatOptions",
    staticResources=_fields("secrets", listeners=_List(_LISTENER), clusters=_List(_CLUSTER)),
)  # fmt: skip

# Fields of a route's action, besides prefixRewrite, that change the path of the request.
_REWRITES = ("regexRewrite", "pathRewritePolicy", "pathRewrite")
_UNKNOWN = "is not known to keep Envoy's admin private"
HINT = "a static listener can be reached from outside: remove it or this from the bootstrap"


def check_public(tree: Mapping[str, Any], admin: AdminAddress) -> list[Problem]:
    """Return a Problem, with the full path, for each field outside the allowlist.

    For a bootstrap with a static listener that others can reach.
    """
    problems: list[Problem] = []
    _check(tree, _TOP, "", problems)
    clusters = {str(get(item, "name")): _Cluster.of(item, admin) for item in _items(tree, "clusters")}
    for index, item in enumerate(_items(tree, "clusters")):
        path = f"staticResources.clusters[{index}]"
        if odd := _odd_port(item):
            problems.append(Problem(path, f"has an endpoint whose port is {odd}", HINT))
    paths = _PathsToAdmin(clusters, admin, problems)
    for index, listener in enumerate(_items(tree, "listeners")):
        paths.check(listener, f"staticResources.listeners[{index}]")
    for index, item in enumerate(_items(tree, "clusters")):
        cluster = clusters[str(get(item, "name"))]
        if cluster.to_admin and not paths.is_allowed(str(get(item, "name"))):
            message = f"leads to Envoy's admin ({admin}) while a static listener can be reached from outside"
            hint = "remove the cluster or the listener from the bootstrap"
            problems.append(Problem(f"staticResources.clusters[{index}]", message, hint))
    return problems


def _items(tree: Any, name: str) -> list[Any]:
    return items(get(tree, "staticResources", name))


def _check(value: Any, shape: Any, path: str, problems: list[Problem]) -> None:
    """Add a Problem for each field that the shape does not have; null means absent (protobuf's JSON form)."""
    if value is None or isinstance(shape, _Any):
        return
    if isinstance(shape, _OneOf):
        if isinstance(value, bool) or value not in shape.values:
            problems.append(Problem(path, f"{str(value)[:80]!r} {_UNKNOWN}", HINT))
    elif isinstance(shape, _List):
        for index, item in enumerate(items(value)):
            _check(item, shape.item, f"{path}[{index}]", problems)
    elif isinstance(value, dict):
        fields = shape
        if isinstance(shape, _Typed):
            fields = shape.types.get(str(value.get("@type")))
            if fields is None:
                problems.append(Problem(path, f"of type {str(value.get('@type'))[:120]!r} {_UNKNOWN}", HINT))
                return
        for key, inner in value.items():
            name = str(key) if str(key) in fields else json_name(str(key))
            where = f"{path}.{key}" if path else str(key)
            if name in fields:
                _check(inner, fields[name], where, problems)
            elif inner is not None and not (isinstance(shape, _Typed) and key == "@type"):
                problems.append(Problem(where, _UNKNOWN, HINT))


class _Cluster(Struct):
    """The kinds of endpoints that a static cluster has."""

    to_admin: bool
    to_pipe: bool

    @classmethod
    def of(cls, cluster: Any, admin: AdminAddress) -> _Cluster:
        addresses = list(_endpoints(cluster))
        to_pipe = any(get(address, "pipe") is not None for address in addresses)
        return cls(any(reaches(address, admin) for address in addresses), to_pipe)


class _PathsToAdmin(Struct):
    """Follows listeners to their clusters. A listener on loopback counts: a public one may lead to it."""

    clusters: Mapping[str, _Cluster]
    admin: AdminAddress
    problems: list[Problem]
    used: dict[str, bool] = field(default_factory=dict)

    def is_allowed(self, cluster: str) -> bool:
        """Return whether only the control plane's own ``/ready`` listener leads to it."""
        return self.used.get(cluster, False)

    def check(self, listener: Any, path: str) -> None:
        """Check each cluster that a listener leads to."""
        chains = get(listener, "filterChains")
        listed = [(chain, f"{path}.filterChains[{at}]") for at, chain in enumerate(items(chains))]
        for chain, where in [*listed, (get(listener, "defaultFilterChain"), f"{path}.defaultFilterChain")]:
            own = of_control_plane(listener, chain, self.admin)
            for at, filter_ in enumerate(items(get(chain, "filters"))):
                self._check_filter(get(filter_, "typedConfig"), f"{where}.filters[{at}].typedConfig", own=own)

    def _check_filter(self, config: Any, path: str, *, own: bool) -> None:
        self._check_targets(config, path, allowed=own)
        for host_at, host in enumerate(items(get(config, "routeConfig", "virtualHosts"))):
            for at, route in enumerate(items(get(host, "routes"))):
                where = f"{path}.routeConfig.virtualHosts[{host_at}].routes[{at}].route"
                self._check_targets(get(route, "route"), where, allowed=own or is_ready(route))

    def _check_targets(self, config: Any, path: str, *, allowed: bool) -> None:
        weighted = items(get(config, "weightedClusters", "clusters"))
        for name in (get(config, "cluster"), *(get(item, "name") for item in weighted)):
            if name is None:
                continue
            cluster = self.clusters.get(str(name))
            if cluster is None:
                self.problems.append(Problem(path, f"leads to {str(name)[:80]!r}, which is no static cluster", HINT))
            elif cluster.to_admin:
                self.used[str(name)] = self.used.get(str(name), True) and allowed
            elif cluster.to_pipe and not allowed:
                self.problems.append(Problem(path, f"leads to a Unix socket by {str(name)[:80]!r}", HINT))


def of_control_plane(listener: Any, chain: Any, admin: AdminAddress) -> bool:
    """Return whether a chain is the one that control planes of Kuma 2.8 to 2.14 add for themselves.

    It is on the admin's port, and only clients with a certificate of the control plane may use it.
    """
    context = get(chain, "transportSocket", "typedConfig")
    authority = get(context, "commonTlsContext", "validationContext")
    inline = get(authority, "trustedCa", "inlineString") or get(authority, "trustedCa", "inlineBytes")
    untrusted = get(authority, "trustChainVerification") not in (None, "VERIFY_TRUST_CHAIN", 0)
    port = get(listener, "address", "socketAddress", "portValue")
    at_admin = isinstance(admin, UnixAdmin) or str(port) == str(admin.port)
    return bool(inline) and not untrusted and get(context, "requireClientCertificate") is True and at_admin


def is_ready(route: Any) -> bool:
    """Return whether a route sends ``/ready`` and nothing else to its cluster."""
    match, action = get(route, "match"), get(route, "route")
    if any(get(action, name) is not None for name in _REWRITES) or get(action, "prefixRewrite") not in (
        None,
        "",
        "/ready",
    ):
        return False
    if get(match, "path") == "/ready":
        return True
    # No other path of the admin begins with it; without a rewrite nothing is cut off (Envoy 1.40).
    return bool(get(match, "prefix") == "/ready")


def _endpoints(cluster: Any) -> list[Any]:
    addresses = []
    for locality in items(get(cluster, "loadAssignment", "endpoints")):
        for item in items(get(locality, "lbEndpoints")):
            endpoint = get(item, "endpoint")
            addresses.append(get(endpoint, "address"))
            addresses += [get(more, "address") for more in items(get(endpoint, "additionalAddresses"))]
    return addresses


def _odd_port(cluster: Any) -> str:
    """Return a port that is no plain number (protobuf allows ``9901.0`` and ``"9.901e3"``), "" if all are."""
    for address in _endpoints(cluster):
        port = get(address, "socketAddress", "portValue")
        if get(address, "socketAddress") is not None and _number(port) is None:
            return repr(port)[:80]
    return ""


def _number(port: Any) -> int | None:
    if isinstance(port, int) and not isinstance(port, bool):
        return port
    return int(port) if isinstance(port, str) and re.fullmatch("[0-9]{1,9}", port, re.ASCII) else None


def reaches(address: Any, admin: AdminAddress) -> bool:
    """Return whether a connection to this address may end at the admin."""
    if isinstance(admin, UnixAdmin):
        path = get(address, "pipe", "path")
        # A directory has many names (links, /proc/self/root), which only the kernel can compare.
        return path is not None and _name(str(path)) == _name(admin.path)
    return _number(get(address, "socketAddress", "portValue")) == admin.port and _may_be_here(
        str(get(address, "socketAddress", "address") or ""), admin
    )


def _name(path: str) -> str:
    return PurePosixPath(os.path.normpath(path)).name


def _may_be_here(host: str, admin: TcpAdmin) -> bool:
    """Return whether a host may be the admin's. A name is resolved when Envoy runs, not now."""
    if host == admin.host or not is_ip(host):
        return True
    ip = ipaddress.ip_address(host)
    if ip.version == 6 and int(ip) >> 32 in {0, 0xFFFF}:
        # ::a.b.c.d and ::ffff:a.b.c.d
        ip = ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if int(ip) > 1 else ip
    # Linux connects to loopback if the destination is the wildcard address.
    return ip.is_loopback or ip.is_unspecified
