"""Listeners of a running configuration that lead others to the admin."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin, UnixAdmin
from kumadp.envoy.admin_exposure import exposing_listeners
from tests.bootstrap.hostile import TYPES, Tree, control_plane_listener, http_listener, manager
from tests.support.scripted_control_plane import socket_address, static_listener

if TYPE_CHECKING:
    from kumadp.envoy.admin import AdminClient

PORT = 18443
BOUND = {("0.0.0.0", PORT)}
SOCKET = UnixAdmin("/run/kumadp/kuma-envoy-admin.sock")
TCP = TcpAdmin("127.0.0.1", 9901)
TARGET: dict[AdminAddress, Tree] = {
    TCP: {"socket_address": {"address": "127.0.0.1", "port_value": 9901}},
    SOCKET: {"pipe": {"path": SOCKET.path}},
}
ELSEWHERE = {"socket_address": {"address": "127.0.0.1", "port_value": 8080}}


def snake(tree: Any) -> Any:
    """Names as Envoy's admin writes them."""
    if isinstance(tree, list):
        return [snake(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {re.sub("[A-Z]", lambda match: "_" + match[0].lower(), key): snake(value) for key, value in tree.items()}


class Admin:
    """Answers as Envoy 1.40's admin, for one listener, route configurations, and clusters by their hosts."""

    def __init__(self, address: AdminAddress, listener: Tree, clusters: dict[str, Tree], *routes: Tree) -> None:
        self.address = address
        self._listener = snake(listener)
        self._clusters = clusters
        self._routes = routes
        self.requested: list[str] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        self.requested.append(path)
        parts = urlsplit(path)
        query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        return 200, json.dumps(self._answer(parts.path, query)).encode()

    def _answer(self, path: str, query: dict[str, str]) -> Tree:
        if path == "/listeners":
            status = {"name": self._listener["name"], "local_address": self._listener["address"]}
            return {"listener_statuses": [status]}
        pattern = re.compile(
            re.sub(
                r"\\x\{(\w+)\}",
                lambda hit: re.escape(chr(int(hit[1], 16))),
                next(value for key, value in query.items() if key in {"name_regex", "filter"}),
            )
        )
        if path == "/clusters":
            hosts = {name: host for name, host in self._clusters.items() if pattern.search(name)}
            return {
                "cluster_statuses": [
                    {"name": name, "host_statuses": [{"address": host}]} for name, host in hosts.items()
                ]
            }
        if query["resource"] == "dynamic_listeners" and pattern.search(self._listener["name"]):
            return {"configs": [{"name": self._listener["name"], "active_state": {"listener": self._listener}}]}
        if query["resource"] == "dynamic_route_configs":
            return {
                "configs": [{"route_config": snake(route)} for route in self._routes if pattern.search(route["name"])]
            }
        return {"configs": []}


async def exposing(admin: Admin, bound: set[tuple[str, int]] = BOUND, local: set[str] = set()) -> list[str]:  # noqa: B006
    return await exposing_listeners(cast("AdminClient", admin), bound, local)


def over_http(match: Tree | None = None, **action: Any) -> Tree:
    return http_listener("open", PORT, [{"filters": [manager("way", match, **action)]}])


def by_matcher() -> Tree:
    listener = over_http()
    host = listener["filterChains"][0]["filters"][0]["typedConfig"]["routeConfig"]["virtualHosts"][0]
    action = {"typedConfig": {"@type": f"{TYPES}envoy.config.route.v3.Route", "route": {"cluster": "way"}}}
    del host["routes"]
    host["matcher"] = {"onNoMatch": {"action": action}}
    return listener


OPEN = {
    "tcp": static_listener("open", PORT, "way", "0.0.0.0"),
    "http": over_http(),
    "another path": over_http({"path": "/x"}, prefixRewrite="/server_info"),
    "past /ready": over_http({"prefix": "/ready"}, prefixRewrite="/"),
    "past /ready by a policy": over_http({"prefix": "/ready"}, pathRewritePolicy={"name": "x"}),
    "past /ready by a format": over_http({"prefix": "/ready"}, pathRewrite="/quitquitquit"),
    "the client names the cluster": over_http(clusterHeader="x-cluster"),
    "one of two by header": over_http(weightedClusters={"clusters": [{"clusterHeader": "x-cluster", "weight": 1}]}),
    "a tree of matchers": by_matcher(),
}


@pytest.mark.parametrize("address", TARGET)
@pytest.mark.parametrize("name", OPEN)
async def test_a_listener_that_leads_to_it_is_named(address: AdminAddress, name: str) -> None:
    assert await exposing(Admin(address, OPEN[name], {"way": TARGET[address]})) == ["open by way"]
    assert await exposing(Admin(address, OPEN[name], {"way": ELSEWHERE})) == []


@pytest.mark.parametrize("address", TARGET)
async def test_listeners_that_the_control_plane_intends_are_left_out(address: AdminAddress) -> None:
    port = 9901
    listener = control_plane_listener("kuma:envoy:admin", "the control plane's", port)
    admin = Admin(address, listener, {"kuma:envoy:admin": TARGET[address]})
    assert await exposing(admin, {("192.0.2.1", port)}) == []
    metrics = over_http({"path": "/metrics"}, prefixRewrite="/stats/prometheus")
    assert await exposing(Admin(address, metrics, {"way": TARGET[address]})) == []
    assert await exposing(Admin(address, over_http({"path": "/ready"}), {"way": TARGET[address]})) == []


async def test_routes_that_come_by_themselves_count() -> None:
    listener = over_http()
    config = listener["filterChains"][0]["filters"][0]["typedConfig"]
    routes = config.pop("routeConfig") | {"name": "routes (of +all)"}
    config["rds"] = {"routeConfigName": routes["name"]}
    assert await exposing(Admin(TCP, listener, {"way": TARGET[TCP]}, routes)) == ["open by way"]


async def test_a_listener_that_is_not_bound_for_others_is_not_read() -> None:
    admin = Admin(TCP, OPEN["tcp"], {"way": TARGET[TCP]})
    assert await exposing(admin, {("0.0.0.0", PORT + 1)}) == []
    assert admin.requested == ["/listeners?format=json"]


async def test_a_listener_that_redirected_traffic_alone_reaches_counts() -> None:
    """Kuma's inbound with a transparent proxy: bind_to_port is false, and 15006 leads to it."""
    redirected = {("0.0.0.0", 15006)}
    listener = static_listener("inbound", PORT, "way", "192.0.2.1") | {"bindToPort": False}
    admin = Admin(TCP, listener, {"way": TARGET[TCP]})
    assert await exposing(admin, redirected, {"192.0.2.1"}) == ["inbound by way"]
    # The virtual address of a service: its clients are on this host.
    assert await exposing(admin, redirected, {"192.0.2.2"}) == []


async def test_routes_of_a_scope_count() -> None:
    listener = over_http()
    config = listener["filterChains"][0]["filters"][0]["typedConfig"]
    routes = config.pop("routeConfig") | {"name": "scoped"}
    scope = {"routeConfigurationName": "scoped", "name": "x", "key": {}}
    config["scopedRoutes"] = {"scopedRouteConfigurationsList": {"scopedRouteConfigurations": [scope]}}
    assert await exposing(Admin(TCP, listener, {"way": TARGET[TCP]}, routes)) == ["open by way"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"])
async def test_every_address_of_the_admin_counts_and_other_loopback_addresses_do_not(host: str) -> None:
    clusters = {"way": {"socket_address": {"address": host, "port_value": 9901}}}
    assert await exposing(Admin(TCP, OPEN["tcp"], clusters)) == ["open by way"]
    clusters = {"way": snake(socket_address(9901, "127.0.0.2"))}
    assert await exposing(Admin(TCP, OPEN["tcp"], clusters)) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"listener_statuses": 5}', b'{"listener_statuses": [5]}'])
async def test_an_admin_that_answers_something_else_is_an_error(body: bytes) -> None:
    class Odd:
        address = TCP

        async def get(self, _path: str) -> tuple[int, bytes]:
            return 200, body

    with pytest.raises(ValueError, match=r".+"):
        await exposing_listeners(cast("AdminClient", Odd()), BOUND)
