"""Finds, in the configuration that an Envoy runs, listeners that lead others to its admin.

Requests cannot guess the host name, path or header that a route demands; Envoy's own admin shows them. Only the
listeners that others reach are read, and the clusters that these lead to, so that a large mesh costs little.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kumadp.addresses import WILDCARDS, plain_ip
from kumadp.bootstrap.address import UnixAdmin
from kumadp.bootstrap.fields import get, items
from kumadp.bootstrap.harmless import is_ready, of_control_plane, reaches
from kumadp.decoding import decode_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.envoy.admin import AdminClient

# Names in one pattern: a request line has a limit (Envoy: 60 KiB of headers).
_AT_ONCE = 100
_HTTP = "http_connection_manager.v3.HttpConnectionManager"
# Where a policy shows Envoy's metrics to a Prometheus (Kuma 2.8: Mesh.metrics).
_METRICS = "/stats/prometheus"


async def ways(admin: AdminClient, bound: Collection[tuple[str, int]]) -> list[str]:
    """A line for each listener, of those bound to these hosts and ports, that leads to the admin.

    The control plane's own are left out: ``/ready``, what demands its certificate, and Prometheus' metrics. Raises
    httpx.HTTPError, and ValueError where the admin answers something else.
    """
    try:
        statuses = decode_json((await admin.get("/listeners?format=json"))[1])["listener_statuses"]
        names = [str(one["name"]) for one in statuses if any(place in bound for place in places_of(one))]
        listeners = [get(one, "activeState", "listener") for one in await _dump(admin, "dynamic_listeners", names)]
        wanted = {str(name) for listener in listeners for name in _route_names(listener)}
        routes = {
            str(get(one, "routeConfig", "name")): get(one, "routeConfig")
            for one in await _dump(admin, "dynamic_route_configs", wanted)
        }
        led = {str(get(one, "name")): _targets(one, admin.address, routes) for one in listeners}
        to_admin = await _leading(admin, {target for targets in led.values() for target in targets})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the admin's answer is of another form: {type(error).__name__}") from None
    return [f"{name} by {target}" for name, targets in sorted(led.items()) for target in sorted(targets & to_admin)]


def places_of(status: Any) -> Iterator[tuple[str, int]]:
    """Hosts and ports of a listener by its entry in ``/listeners?format=json``."""
    for address in (status["local_address"], *status.get("additional_local_addresses", ())):
        if found := address.get("socket_address"):
            yield str(found["address"]), int(found["port_value"])


async def _dump(admin: AdminClient, resource: str, names: Collection[str]) -> list[Any]:
    """The resources of these names."""
    found: list[Any] = []
    for pattern in _patterns(names):
        _, body = await admin.get(f"/config_dump?resource={resource}&name_regex={quote(pattern)}")
        found += items(decode_json(body).get("configs"))
    return found


def _patterns(names: Collection[str]) -> Iterator[str]:
    ordered = sorted(names)
    for start in range(0, len(ordered), _AT_ONCE):
        yield f"^({'|'.join(map(_quoted, ordered[start : start + _AT_ONCE]))})$"


def _quoted(name: str) -> str:
    # RE2 knows no escapes of letters that Python's escape() would make of control characters.
    return re.sub(r"[^A-Za-z0-9_]", lambda found: rf"\x{{{ord(found[0]):x}}}", name)


def _chains(listener: Any) -> list[Any]:
    return [*items(get(listener, "filterChains")), *items(get(listener, "defaultFilterChain"))]


def _configs(chain: Any) -> Iterator[Any]:
    for one in items(get(chain, "filters")):
        yield get(one, "typedConfig")


def _route_names(listener: Any) -> Iterator[Any]:
    for chain in _chains(listener):
        for config in _configs(chain):
            if (name := get(config, "rds", "routeConfigName")) is not None:
                yield name


def _targets(listener: Any, admin: AdminAddress, routes: dict[str, Any]) -> set[str]:
    """Clusters that a stranger reaches by a listener."""
    found: set[str] = set()
    for chain in _chains(listener):
        if of_control_plane(listener, chain, admin):
            continue
        for config in _configs(chain):
            if str(get(config, "@type")).endswith(_HTTP):
                inline = get(config, "routeConfig") or routes.get(str(get(config, "rds", "routeConfigName")))
                found |= set(_routed(inline))
            else:
                found |= set(_named(config))
    return found


def _routed(config: Any) -> Iterator[str]:
    for host in items(get(config, "virtualHosts")):
        for route in items(get(host, "routes")):
            action = get(route, "route")
            if not is_ready(route) and get(action, "prefixRewrite") != _METRICS:
                yield from _named(action)


def _named(config: Any) -> Iterator[str]:
    """Every cluster that is named within."""
    if isinstance(config, list):
        for one in config:
            yield from _named(one)
    elif isinstance(config, dict):
        for key, value in config.items():
            if key == "cluster" and isinstance(value, str):
                yield value
            elif key in {"weighted_clusters", "weightedClusters"}:
                yield from (str(get(one, "name")) for one in items(get(value, "clusters")))
            elif isinstance(value, (dict, list)):
                yield from _named(value)


def _is_admin(address: Any, admin: AdminAddress) -> bool:
    """Whether an address that is resolved is the admin's: another one of loopback may well be an application's."""
    if not reaches(address, admin):
        return False
    host = str(get(address, "socketAddress", "address") or "")
    return isinstance(admin, UnixAdmin) or plain_ip(host) in {plain_ip(admin.host), *map(plain_ip, WILDCARDS)}


async def _leading(admin: AdminClient, names: Collection[str]) -> set[str]:
    """Those clusters that have the admin among their hosts, or connect to where a client says."""
    found: set[str] = set()
    for pattern in _patterns(names):
        _, body = await admin.get(f"/clusters?format=json&filter={quote(pattern)}")
        for cluster in items(decode_json(body).get("cluster_statuses")):
            hosts = items(get(cluster, "hostStatuses"))
            if any(_is_admin(get(host, "address"), admin.address) for host in hosts):
                found.add(str(get(cluster, "name")))
    for one in await _dump(admin, "dynamic_active_clusters", names):
        options = get(one, "cluster", "originalDstLbConfig")
        if get(options, "useHttpHeader") or get(options, "metadataKey") is not None:
            found.add(str(get(one, "cluster", "name")))
    return found & set(names)
