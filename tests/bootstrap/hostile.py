"""Bootstraps with a listener that others reach: a harmless one, and ways to turn it against the admin."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.support.scripted_control_plane import socket_address, static_cluster, static_listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Tree = dict[str, Any]
TYPES = "type.googleapis.com/"
FILTERS = f"{TYPES}envoy.extensions.filters"
CLUSTERS = f"{TYPES}envoy.extensions.clusters"
ADMIN = 9901


def manager(cluster: str, match: Tree | None = None, **action: Any) -> Tree:
    """A filter that routes what matches to a cluster."""
    config = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "statPrefix": "open",
        "routeConfig": {
            "virtualHosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": match or {"prefix": "/"}, "route": {"cluster": cluster, **action}}],
                }
            ]
        },
        "httpFilters": [
            {"name": "envoy.filters.http.router", "typedConfig": {"@type": f"{FILTERS}.http.router.v3.Router"}}
        ],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typedConfig": config}


def http_listener(name: str, port: int, chains: list[Tree], host: str = "0.0.0.0") -> Tree:
    return {"name": name, "address": socket_address(port, host), "filterChains": chains}


def public_bootstrap(admin: Tree | None = None) -> Tree:
    """Two static listeners that others reach, both of which lead to an application."""
    return {
        "node": {"id": "default.web-1", "cluster": "web"},
        "admin": {"address": admin or socket_address(ADMIN)},
        "staticResources": {
            "listeners": [
                static_listener("tcp", 18443, "application", "0.0.0.0"),
                http_listener("http", 18080, [{"filters": [manager("application")]}]),
            ],
            "clusters": [static_cluster("application", socket_address(8080))],
        },
    }


def control_plane_listener(cluster: str, authority: str, port: int = ADMIN, host: str = "192.0.2.1") -> Tree:
    """As Kuma 2.13 makes ``kuma:envoy:admin``: ``/ready`` in plain, everything for the control plane's certificate."""
    context = {
        "@type": f"{TYPES}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "commonTlsContext": {
            "tlsCertificates": [{"certificateChain": {"inlineString": "x"}, "privateKey": {"inlineString": "y"}}],
            "validationContext": {"trustedCa": {"inlineString": authority}},
        },
        "requireClientCertificate": True,
    }
    ready = {"match": {"prefix": "/ready"}, "route": {"cluster": cluster, "prefixRewrite": "/ready"}}
    plain = manager(cluster)
    plain["typedConfig"]["routeConfig"]["virtualHosts"][0]["routes"] = [ready]
    inspector = {"name": "tls", "typedConfig": {"@type": f"{FILTERS}.listener.tls_inspector.v3.TlsInspector"}}
    chains: list[Tree] = [
        {"filters": [plain]},
        {
            "filterChainMatch": {"transportProtocol": "tls"},
            "transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": context},
            "filters": [manager(cluster, {"prefix": "/"}, prefixRewrite="/")],
        },
    ]
    return http_listener("kuma:envoy:admin", port, chains, host) | {"listenerFilters": [inspector]}


def every_path(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value within."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*prefix, key)
        yield from every_path(value, (*prefix, key))


def changed(tree: Tree, path: tuple[Any, ...], edit: Callable[[Any], Any]) -> Tree:
    """A copy with another value at a path."""
    copied = copy.deepcopy(tree)
    inner: Any = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = edit(inner[path[-1]])
    return copied


def _with(edit: Callable[[Tree, Tree, Tree], object]) -> Tree:
    """``edit`` gets the tree, its HTTP listener and its cluster."""
    tree = public_bootstrap()
    static = tree["staticResources"]
    edit(tree, static["listeners"][1], static["clusters"][0])
    return tree


def _endpoint(cluster: Tree) -> Tree:
    field: Tree = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
    return field


def _manager(listener: Tree) -> Tree:
    field: Tree = listener["filterChains"][0]["filters"][0]["typedConfig"]
    return field


def _route(listener: Tree) -> Tree:
    field: Tree = _manager(listener)["routeConfig"]["virtualHosts"][0]["routes"][0]
    return field


def _to(address: Tree, kind: str = "STATIC") -> Callable[[Tree, Tree, Tree], object]:
    def edit(_tree: Tree, _listener: Tree, cluster: Tree) -> None:
        cluster["type"] = kind
        _endpoint(cluster)["address"] = address

    return edit


def _original_dst(**options: Any) -> Callable[[Tree, Tree, Tree], object]:
    def edit(_tree: Tree, _listener: Tree, cluster: Tree) -> None:
        del cluster["loadAssignment"]
        cluster |= {"type": "ORIGINAL_DST", "lbPolicy": "CLUSTER_PROVIDED", "originalDstLbConfig": options}

    return edit


def _custom(name: str, **config: Any) -> Callable[[Tree, Tree, Tree], object]:
    def edit(_tree: Tree, _listener: Tree, cluster: Tree) -> None:
        del cluster["type"], cluster["loadAssignment"]
        cluster |= {"lbPolicy": "CLUSTER_PROVIDED", "clusterType": {"name": name, "typedConfig": config}}

    return edit


def _admin_address(port: object = ADMIN, host: str = "127.0.0.1") -> Tree:
    return {"socketAddress": {"address": host, "portValue": port}}


_ASSIGNMENT = static_cluster("x", socket_address(ADMIN))["loadAssignment"]

# Each has the whole admin reachable from another host where Envoy 1.40 takes it, or opens a way that cannot be judged.
HOSTILE: dict[str, Tree] = {
    "assignment in two spellings": _with(lambda _t, _l, c: c.update(load_assignment=_ASSIGNMENT)),
    "assignment in two spellings, the first one null": _with(
        lambda _t, _l, c: c.update(loadAssignment=None, load_assignment=_ASSIGNMENT)
    ),
    "static resources in two spellings": _with(
        lambda t, _l, _c: t.update(static_resources={"clusters": [static_cluster("more", socket_address(ADMIN))]})
    ),
    "endpoints in two spellings": _with(
        lambda _t, _l, c: c["loadAssignment"]["endpoints"][0].update(
            lb_endpoints=_ASSIGNMENT["endpoints"][0]["lbEndpoints"]
        )
    ),
    "a port in two spellings": _with(
        lambda _t, _l, c: _endpoint(c)["address"]["socketAddress"].update(port_value=ADMIN)
    ),
    "a route in two spellings": _with(
        lambda _t, ln, _c: _manager(ln)["routeConfig"].update(
            virtual_hosts=[{"name": "x", "domains": ["x"], "routes": []}]
        )
    ),
    "original destination by header": _with(_original_dst(useHttpHeader=True)),
    "original destination by another header": _with(_original_dst(useHttpHeader=True, httpHeaderName="x-to")),
    "original destination by metadata": _with(_original_dst(metadataKey={"key": "x", "path": [{"key": "y"}]})),
    "original destination, bare": _with(_original_dst()),
    "original destination by number": _with(
        lambda t, ln, c: (_original_dst(useHttpHeader=True)(t, ln, c), c.update(type=4))
    ),
    "a name": _with(_to(_admin_address(host="admin.example"), "STRICT_DNS")),
    "localhost": _with(_to(_admin_address(host="localhost"), "LOGICAL_DNS")),
    "a number as a name": _with(_to(_admin_address(host="2130706433"), "STRICT_DNS")),
    "a short form as a name": _with(_to(_admin_address(host="127.1"), "LOGICAL_DNS")),
    "the type as a number": _with(_to(_admin_address(host="admin.example"), 2)),  # type: ignore[arg-type]
    "the type as text of a number": _with(_to(_admin_address(host="admin.example"), "2")),
    "the type in lower case": _with(_to(_admin_address(host="admin.example"), "logical_dns")),
    "mapped": _with(_to(_admin_address(host="::ffff:127.0.0.1"))),
    "mapped, in full": _with(_to(_admin_address(host="0:0:0:0:0:ffff:7f00:1"))),
    "compatible": _with(_to(_admin_address(host="::127.0.0.1"))),
    "any": _with(_to(_admin_address(host="0.0.0.0"))),
    "any of IPv6": _with(_to(_admin_address(host="0:0:0:0:0:0:0:0"))),
    "any, mapped": _with(_to(_admin_address(host="::ffff:0.0.0.0"))),
    "the port as a float": _with(_to(_admin_address(9901.0))),
    "the port as text of a float": _with(_to(_admin_address("9901.0"))),
    "the port with an exponent": _with(_to(_admin_address("9.901e3"))),
    "the port in hexadecimal": _with(_to(_admin_address("0x26AD"))),
    "the port with a sign": _with(_to(_admin_address("+9901"))),
    "a named port": _with(_to({"socketAddress": {"address": "127.0.0.1", "namedPort": "admin", "resolverName": "x"}})),
    "an internal address": _with(_to({"envoyInternalAddress": {"serverListenerName": "inner"}})),
    "an additional address": _with(
        lambda _t, _l, c: _endpoint(c).update(additionalAddresses=[{"address": _admin_address()}])
    ),
    "one endpoint without a list": _with(
        lambda _t, _l, c: c.update(
            loadAssignment={
                "clusterName": "x",
                "endpoints": {"lbEndpoints": {"endpoint": {"address": _admin_address()}}},
            }
        )
    ),
    "endpoints in a list of lists": _with(
        lambda _t, _l, c: c.update(loadAssignment=_ASSIGNMENT | {"endpoints": [_ASSIGNMENT["endpoints"]]})
    ),
    "one listener and one cluster without a list": {
        **public_bootstrap(),
        "staticResources": {
            "listeners": static_listener("open", 18443, "way", "0.0.0.0"),
            "clusters": static_cluster("way", socket_address(ADMIN)),
        },
    },
    "named endpoints": _with(
        lambda _t, _l, c: c["loadAssignment"].update(namedEndpoints={"a": {"address": _admin_address()}})
    ),
    "endpoints of old": _with(lambda _t, _l, c: c.update(hosts=[_admin_address()])),
    "endpoints by EDS from a file": _with(
        lambda _t, _l, c: c.update(
            type="EDS", edsClusterConfig={"edsConfig": {"pathConfigSource": {"path": "/tmp/endpoints.json"}}}
        )
    ),
    "a forward proxy": _with(
        _custom(
            "envoy.clusters.dynamic_forward_proxy",
            **{
                "@type": f"{CLUSTERS}.dynamic_forward_proxy.v3.ClusterConfig",
                "dnsCacheConfig": {"name": "x", "dnsLookupFamily": "V4_ONLY"},
            },
        )
    ),
    "an aggregate": _with(
        _custom("envoy.clusters.aggregate", **{"@type": f"{CLUSTERS}.aggregate.v3.ClusterConfig", "clusters": ["x"]})
    ),
    "redis": _with(_custom("envoy.clusters.redis", **{"@type": f"{TYPES}google.protobuf.Struct", "value": {}})),
    "a cluster type that does not exist yet": _with(_custom("envoy.clusters.next", **{"@type": f"{CLUSTERS}.next"})),
    "a typed struct in a filter's place": _with(
        lambda _t, ln, _c: ln["filterChains"][0]["filters"][0].update(
            typedConfig={
                "@type": f"{TYPES}xds.type.v3.TypedStruct",
                "type_url": "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "value": {"cluster": "x", "stat_prefix": "x"},
            }
        )
    ),
    "a cluster by header": _with(lambda _t, ln, _c: _route(ln).update(route={"clusterHeader": "x-cluster"})),
    "a mirror": _with(lambda _t, ln, _c: _route(ln)["route"].update(requestMirrorPolicies=[{"cluster": "x"}])),
    "a cluster that is not there yet": _with(lambda _t, ln, _c: _route(ln)["route"].update(cluster="later")),
    "weighted clusters that are not there yet": _with(
        lambda _t, ln, _c: _route(ln).update(route={"weightedClusters": {"clusters": [{"name": "later", "weight": 1}]}})
    ),
    "routes from elsewhere": _with(
        lambda _t, ln, _c: (_manager(ln).pop("routeConfig"), _manager(ln).update(rds={"routeConfigName": "x"}))
    ),
    "a filter of HTTP": _with(
        lambda _t, ln, _c: _manager(ln)["httpFilters"].insert(
            0,
            {
                "name": "envoy.filters.http.lua",
                "typedConfig": {"@type": f"{FILTERS}.http.lua.v3.Lua", "inlineCode": ""},
            },
        )
    ),
    "a filter of a route": _with(
        lambda _t, ln, _c: _route(ln).update(
            typedPerFilterConfig={"x": {"@type": f"{FILTERS}.http.lua.v3.LuaPerRoute"}}
        )
    ),
    "a CONNECT upgrade": _with(lambda _t, ln, _c: _manager(ln).update(upgradeConfigs=[{"upgradeType": "CONNECT"}])),
    "a file as an answer": _with(
        lambda _t, ln, _c: (
            _route(ln).pop("route"),
            _route(ln).update(directResponse={"status": 200, "body": {"filename": "/proc/self/environ"}}),
        )
    ),
    "a listener filter": _with(
        lambda _t, ln, _c: ln.update(
            listenerFilters=[
                {
                    "name": "envoy.filters.listener.original_dst",
                    "typedConfig": {"@type": f"{FILTERS}.listener.original_dst.v3.OriginalDst"},
                }
            ]
        )
    ),
    "other listeners by destination": _with(lambda _t, ln, _c: ln.update(useOriginalDst=True)),
    "another transport": _with(
        lambda _t, _l, c: c.update(
            transportSocket={
                "name": "envoy.transport_sockets.http_11_proxy",
                "typedConfig": {
                    "@type": f"{TYPES}envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport"
                },
            }
        )
    ),
    "filters of a cluster": _with(lambda _t, _l, c: c.update(filters=[{"name": "x"}])),
    "a chain of two": _with(
        lambda t, _l, c: (
            t["staticResources"]["listeners"].append(static_listener("inner", 18444, "way")),
            t["staticResources"]["clusters"].append(static_cluster("way", socket_address(ADMIN))),
            _endpoint(c).update(address=socket_address(18444)),
        )
    ),
    "an additional public address": _with(
        lambda t, _l, c: (
            t["staticResources"].update(
                listeners=[
                    static_listener("half", 18443, "application")
                    | {"additionalAddresses": {"address": socket_address(18443, "0.0.0.0")}}
                ]
            ),
            _endpoint(c).update(address=_admin_address()),
        )
    ),
    "a listener that is reached by its original destination alone": _with(
        lambda t, _l, c: (
            t["staticResources"].update(
                listeners=[static_listener("behind", 18443, "application", "0.0.0.0") | {"bindToPort": False}]
            ),
            _endpoint(c).update(address=_admin_address()),
        )
    ),
    "a listener in another network namespace": _with(
        lambda t, _l, c: (
            t["staticResources"].update(listeners=[static_listener("half", 18443, "application")]),
            t["staticResources"]["listeners"][0]["address"]["socketAddress"].update(
                networkNamespaceFilepath="/proc/1/ns/net"
            ),
            _endpoint(c).update(address=_admin_address()),
        )
    ),
    "an internal listener": _with(
        lambda t, _l, c: (
            t["staticResources"]["listeners"].append({"name": "inner", "internalListener": {}, "filterChains": []}),
            _endpoint(c).update(address=_admin_address()),
        )
    ),
    "a way past /ready": _with(
        lambda _t, ln, c: (
            _endpoint(c).update(address=_admin_address()),
            _route(ln).update(match={"prefix": "/ready"}, route={"cluster": "application", "prefixRewrite": "/"}),
        )
    ),
    "a Unix socket of somebody": _with(_to({"pipe": {"path": "/run/kumadp/web/control.sock"}})),
    "an extension": _with(
        lambda t, _l, _c: t.update(
            bootstrapExtensions=[
                {
                    "name": "x",
                    "typedConfig": {
                        "@type": f"{TYPES}envoy.extensions.bootstrap.reverse_tunnel.downstream_socket_interface.v3"
                        ".DownstreamReverseConnectionSocketInterface"
                    },
                }
            ]
        )
    ),
    "a listener on a socket that others may use": {
        "admin": {"address": socket_address(ADMIN)},
        "staticResources": {
            "listeners": [
                static_listener("open", 1, "way") | {"address": {"pipe": {"path": "/shared/open.sock", "mode": 0o666}}}
            ],
            "clusters": [static_cluster("way", socket_address(ADMIN))],
        },
    },
    "listeners past the one stream": {
        "admin": {"address": socket_address(ADMIN)},
        "dynamicResources": {
            "ldsConfig": {"apiConfigSource": {"apiType": "REST", "clusterNames": ["x"], "transportApiVersion": "V3"}}
        },
    },
    "listeners by a locator": {
        "admin": {"address": socket_address(ADMIN)},
        "dynamicResources": {"ldsResourcesLocator": "xdstp://x/envoy.config.listener.v3.Listener/*"},
        "defaultConfigSource": {"ads": {}},
    },
    "a listener's owner": _with(lambda t, _l, _c: t.update(listenerManager={"name": "x"})),
    "another kind of sockets": _with(lambda t, _l, _c: t.update(defaultSocketInterface="x")),
}

# The same where the admin is a Unix socket.
SOCKET = {"pipe": {"path": "/run/kumadp/kuma-envoy-admin.sock", "mode": 384}}
PATHS = (
    "/run/kumadp/kuma-envoy-admin.sock",
    "/run/./kumadp//kuma-envoy-admin.sock",
    "/proc/self/root/run/kumadp/kuma-envoy-admin.sock",
    "/var/run/kumadp/kuma-envoy-admin.sock",
    "kuma-envoy-admin.sock",
)
