"""Finds, in the configuration that an Envoy runs, listeners through which others reach its admin.

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
_NAMES_PER_PATTERN = 100
# Stands for every cluster: a header of the request names it. No cluster has this name.
_ANY_CLUSTER = ""
# The path at which a policy exposes Envoy's metrics to a Prometheus (Kuma 2.8: Mesh.metrics).
_METRICS = "/stats/prometheus"


async def exposing_listeners(
    admin: AdminClient, bound: Collection[tuple[str, int]], local: Collection[str] = ()
) -> list[str]:
    """Return a line for each listener that leads to the admin, of those at ``bound`` addresses or a ``local`` host.

    ``bound`` are hosts and ports. A listener that is not bound is reached by whatever is redirected to one with
    use_original_dst, as with Kuma's transparent proxy: ``local`` are the addresses at which other hosts reach this one.
    The control plane's own listeners are left out: ``/ready``, what demands its certificate, and Prometheus' metrics.
    Raises AdminUnreachable, and ValueError if the admin answers something else.
    """
    try:
        statuses = decode_json((await admin.get("/listeners?format=json"))[1])["listener_statuses"]
        names = [
            str(status["name"])
            for status in statuses
            if any(address in bound or address[0] in local for address in addresses_of(status))
        ]
        listeners = [
            get(config, "activeState", "listener")
            for config in await _dump(admin, "dynamic_listeners", _patterns(names))
        ]
        route_names = set(_route_names(listeners))
        routes = {
            str(get(config, "routeConfig", "name")): get(config, "routeConfig")
            for config in await _dump(admin, "dynamic_route_configs", _patterns(route_names))
        }
        targets_of = {str(get(listener, "name")): _targets(listener, admin.address, routes) for listener in listeners}
        to_admin = await _leading(admin, {target for targets in targets_of.values() for target in targets})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the admin's answer has another structure: {type(error).__name__}") from None
    return [
        f"{name} by {target}"
        for name, targets in sorted(targets_of.items())
        for target in sorted(to_admin if _ANY_CLUSTER in targets else targets & to_admin)
    ]


def addresses_of(status: Any) -> Iterator[tuple[str, int]]:
    """Yield hosts and ports of a listener from its entry in ``/listeners?format=json``."""
    for address in (status["local_address"], *status.get("additional_local_addresses", ())):
        if socket_address := address.get("socket_address"):
            yield str(socket_address["address"]), int(socket_address["port_value"])


async def _dump(admin: AdminClient, resource: str, patterns: Iterable[str]) -> list[Any]:
    """Return the resources whose names match one of the patterns."""
    configs: list[Any] = []
    for pattern in patterns:
        _, body = await admin.get(f"/config_dump?resource={resource}&name_regex={quote(pattern)}")
        configs += items(decode_json(body).get("configs"))
    return configs


def _patterns(names: Collection[str]) -> Iterator[str]:
    ordered = sorted(names)
    for start in range(0, len(ordered), _NAMES_PER_PATTERN):
        yield f"^({'|'.join(map(_quoted, ordered[start : start + _NAMES_PER_PATTERN]))})$"


def _quoted(name: str) -> str:
    # RE2 knows no escapes of letters that Python's escape() would make of control characters.
    return re.sub(r"[^A-Za-z0-9_]", lambda match: rf"\x{{{ord(match[0]):x}}}", name)


def _chains(listener: Any) -> list[Any]:
    return [*items(get(listener, "filterChains")), *items(get(listener, "defaultFilterChain"))]


def _route_names(tree: Any) -> Iterator[str]:
    """Yield the name of every route configuration that is named within: by ``rds``, or for a scope."""
    for key, value in _pairs(tree):
        if key in {"route_config_name", "route_configuration_name"} and isinstance(value, str):
            yield value
        yield from _route_names(value)


def _targets(listener: Any, admin: AdminAddress, routes: dict[str, Any]) -> set[str]:
    """Return the clusters that a stranger reaches through a listener."""
    chains = [chain for chain in _chains(listener) if not of_control_plane(listener, chain, admin)]
    names = {name for name in _route_names(chains) if name in routes}
    return {cluster for tree in (chains, *(routes[name] for name in names)) for cluster in _cluster_names(tree)}


def _cluster_names(tree: Any) -> Iterator[str]:
    """Yield every cluster that is named within, except in the control plane's own routes."""
    if isinstance(tree, dict) and (is_ready(tree) or get(tree, "route", "prefixRewrite") == _METRICS):
        return
    for key, value in _pairs(tree):
        if key == "cluster" and isinstance(value, str):
            yield value
        elif key == "cluster_header" and value:
            yield _ANY_CLUSTER
        elif key == "weighted_clusters":
            yield from (str(get(cluster, "name")) for cluster in items(get(value, "clusters")))
        yield from _cluster_names(value)


def _pairs(tree: Any) -> Iterable[tuple[str, Any]]:
    """Return fields of a mapping, named as in Envoy's admin, or values of a list, which have no name."""
    if isinstance(tree, dict):
        return tree.items()
    return (("", item) for item in tree) if isinstance(tree, list) else ()


def _is_admin(address: Any, admin: AdminAddress) -> bool:
    """Return whether a resolved address is the admin's: another loopback address may well be an application's."""
    if not reaches(address, admin):
        return False
    host = str(get(address, "socketAddress", "address") or "")
    return isinstance(admin, UnixAdmin) or plain_ip(host) in {plain_ip(admin.host), *map(plain_ip, WILDCARDS)}


async def _leading(admin: AdminClient, names: Collection[str]) -> set[str]:
    """Return those clusters that have the admin among their hosts, or connect to an address that the client names."""
    leading: set[str] = set()
    patterns = [".*"] if _ANY_CLUSTER in names else list(_patterns(names))
    for pattern in patterns:
        _, body = await admin.get(f"/clusters?format=json&filter={quote(pattern)}")
        for cluster in items(decode_json(body).get("cluster_statuses")):
            hosts = items(get(cluster, "hostStatuses"))
            if any(_is_admin(get(host, "address"), admin.address) for host in hosts):
                leading.add(str(get(cluster, "name")))
    for config in await _dump(admin, "dynamic_active_clusters", patterns):
        options = get(config, "cluster", "originalDstLbConfig")
        if get(options, "useHttpHeader") or get(options, "metadataKey") is not None:
            leading.add(str(get(config, "cluster", "name")))
    return leading
