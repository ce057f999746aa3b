"""Finds, in the configuration that an Envoy runs, listeners that lead others to its admin.

Requests cannot guess the host name, path or header that a route demands; Envoy's own admin shows them. Only the
listeners that others reach are read, and the clusters that these lead to, so that a large mesh costs little.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kumadp.addresses import WILDCARDS, plain_ip
from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.bootstrap.fields import get, items
from kumadp.bootstrap.static_allowlist import is_ready, of_control_plane, reaches
from kumadp.decoding import decode_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.admin import AdminClient

# Names in one pattern: a request line has a limit (Envoy: 60 KiB of headers).
_AT_ONCE = 100
# No cluster has this name: the client says which one.
_ANY_CLUSTER = ""
# Where a policy shows Envoy's metrics to a Prometheus (Kuma 2.8: Mesh.metrics).
_METRICS = "/stats/prometheus"


async def ways(admin: AdminClient, bound: Collection[tuple[str, int]], local: Collection[str] = ()) -> list[str]:
    """A line for each listener that leads to the admin, of those bound to these hosts and ports or at a ``local`` host.

    A listener that is not bound is reached by whatever is redirected to one with use_original_dst, as with Kuma's
    transparent proxy: ``local`` are the addresses at which other hosts find this one. The control plane's own are left
    out: ``/ready``, what demands its certificate, and Prometheus' metrics. Raises AdminUnreachable, and ValueError if
    the admin answers something else.
    """
    try:
        statuses = decode_json((await admin.get("/listeners?format=json"))[1])["listener_statuses"]
        names = [
            str(one["name"]) for one in statuses if any(place in bound or place[0] in local for place in places_of(one))
        ]
        listeners = [
            get(one, "activeState", "listener") for one in await _dump(admin, "dynamic_listeners", _patterns(names))
        ]
        wanted = set(_route_names(listeners))
        routes = {
            str(get(one, "routeConfig", "name")): get(one, "routeConfig")
            for one in await _dump(admin, "dynamic_route_configs", _patterns(wanted))
        }
        led = {str(get(one, "name")): _targets(one, admin.address, routes) for one in listeners}
        to_admin = await _leading(admin, {target for targets in led.values() for target in targets})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the admin's answer is of another form: {type(error).__name__}") from None
    return [
        f"{name} by {target}"
        for name, targets in sorted(led.items())
        for target in sorted(to_admin if _ANY_CLUSTER in targets else targets & to_admin)
    ]


def places_of(status: Any) -> Iterator[tuple[str, int]]:
    """Hosts and ports of a listener by its entry in ``/listeners?format=json``."""
    for address in (status["local_address"], *status.get("additional_local_addresses", ())):
        if found := address.get("socket_address"):
            yield str(found["address"]), int(found["port_value"])


async def _dump(admin: AdminClient, resource: str, patterns: Iterable[str]) -> list[Any]:
    """The resources whose names match one of these."""
    found: list[Any] = []
    for pattern in patterns:
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


def _route_names(tree: Any) -> Iterator[str]:
    """Every configuration of routes that is named within: by ``rds``, or for a scope."""
    for key, value in _pairs(tree):
        if key in {"route_config_name", "route_configuration_name"} and isinstance(value, str):
            yield value
        yield from _route_names(value)


def _targets(listener: Any, admin: AdminAddress, routes: dict[str, Any]) -> set[str]:
    """Clusters that a stranger reaches by a listener."""
    chains = [one for one in _chains(listener) if not of_control_plane(listener, one, admin)]
    named = {name for name in _route_names(chains) if name in routes}
    return {target for tree in (chains, *(routes[name] for name in named)) for target in _named(tree)}


def _named(tree: Any) -> Iterator[str]:
    """Every cluster that is named within, but for the control plane's own routes."""
    if isinstance(tree, dict) and (is_ready(tree) or get(tree, "route", "prefixRewrite") == _METRICS):
        return
    for key, value in _pairs(tree):
        if key == "cluster" and isinstance(value, str):
            yield value
        elif key == "cluster_header" and value:
            yield _ANY_CLUSTER
        elif key == "weighted_clusters":
            yield from (str(get(one, "name")) for one in items(get(value, "clusters")))
        yield from _named(value)


def _pairs(tree: Any) -> Iterable[tuple[str, Any]]:
    """Fields of a mapping, named as Envoy's admin does, or values of a list, which have no name."""
    if isinstance(tree, dict):
        return tree.items()
    return (("", one) for one in tree) if isinstance(tree, list) else ()


def _is_admin(address: Any, admin: AdminAddress) -> bool:
    """Whether an address that is resolved is the admin's: another one of loopback may well be an application's."""
    if not reaches(address, admin):
        return False
    host = str(get(address, "socketAddress", "address") or "")
    return isinstance(admin, UnixAdmin) or plain_ip(host) in {plain_ip(admin.host), *map(plain_ip, WILDCARDS)}


async def _leading(admin: AdminClient, names: Collection[str]) -> set[str]:
    """Those clusters that have the admin among their hosts, or connect to where a client says."""
    found: set[str] = set()
    patterns = [".*"] if _ANY_CLUSTER in names else list(_patterns(names))
    for pattern in patterns:
        _, body = await admin.get(f"/clusters?format=json&filter={quote(pattern)}")
        for cluster in items(decode_json(body).get("cluster_statuses")):
            hosts = items(get(cluster, "hostStatuses"))
            if any(_is_admin(get(host, "address"), admin.address) for host in hosts):
                found.add(str(get(cluster, "name")))
    for one in await _dump(admin, "dynamic_active_clusters", patterns):
        options = get(one, "cluster", "originalDstLbConfig")
        if get(options, "useHttpHeader") or get(options, "metadataKey") is not None:
            found.add(str(get(one, "cluster", "name")))
    return found
