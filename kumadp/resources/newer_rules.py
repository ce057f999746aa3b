"""Rules for metrics, reachable backends and zone proxy listeners (Kuma 2.13.5 and 2.14.3: dataplane_validator.go)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.expressions import problem_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.resources.types import Metrics, Networking, ReachableBackendRef

    Say = Callable[[str, str, str], None]

KINDS = ("MeshService", "MeshMultiZoneService", "MeshExternalService")
PROMETHEUS = "prometheus"
_IDENTIFIER = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def check_metrics(metrics: Metrics, say: Say) -> None:
    """Type and configuration; Kuma looks at neither for a gateway."""
    if metrics.type != PROMETHEUS:
        say("metrics.type", f"{metrics.type!r} is not known" if metrics.type else "is missing", f"write {PROMETHEUS}")
        return
    conf = metrics.conf
    port = conf.get("port", 0)
    if not is_port(port):
        say("metrics.conf.port", f"{port!r} is not a port", "1 to 65535")
    mode = (conf.get("tls") or {}).get("mode", "activeMTLSBackend")
    if "skipMTLS" in conf and conf.get("tls") is not None and mode != _mode_of(skip=bool(conf["skipMTLS"])):
        say("metrics.conf", "skipMTLS and tls contradict each other", "keep tls and take out skipMTLS")
    wrong = problem_of(str((conf.get("envoy") or {}).get("filterRegex", "")))
    if wrong:
        say("metrics.conf.envoy.filterRegex", f"is not a regular expression: {wrong}", "Go's syntax (RE2)")
    seen: set[str] = set()
    for index, application in enumerate(conf.get("aggregate") or ()):
        name = str(application.get("name", ""))
        path = f"metrics.conf.aggregate[{index}].name"
        if name in seen:
            say(path, f"{name!r} is given twice" if name else "is missing twice", "give each application its own name")
        seen.add(name)


def is_port(value: object) -> bool:
    """Whether it is the number of a port, or 0, as a number or a text (Kuma 2.8 to 2.14: jsonpb takes both)."""
    text = str(value)
    return not isinstance(value, bool) and text.isascii() and text.isdecimal() and int(text[:9]) <= 65535


def _mode_of(*, skip: bool) -> str:
    return "disabled" if skip else "activeMTLSBackend"


def check_reachable(ref: ReachableBackendRef, path: str, say: Say) -> None:
    """One reference of ``reachableBackends``."""
    if ref.kind not in KINDS:
        say(f"{path}.kind", f"{ref.kind!r} is not known" if ref.kind else "is missing", f"one of {', '.join(KINDS)}")
    if ref.name and not _IDENTIFIER.fullmatch(ref.name):
        say(f"{path}.name", f"{ref.name!r} is not a name", "lower-case letters, digits, - and .")
    if not ref.name and ref.namespace:
        say(f"{path}.name", "is missing", "a namespace needs a name")
    elif not ref.name and not ref.labels:
        say(f"{path}.name", "is missing", "name the service, or give its labels")
    if (ref.name or ref.namespace) and ref.labels:
        say(f"{path}.labels", "cannot be given with a name", "keep one of the two")


def check_listeners(networking: Networking, say: Say) -> list[tuple[str, str]]:
    """Names and types of zone proxy listeners; the paths and values of their addresses, which are checked elsewhere."""
    if networking.gateway is not None and networking.listeners:
        say("networking.listeners", "a gateway has none", "take them out")
        return []
    names = {inbound.name or str(inbound.port) for inbound in networking.inbound}
    addresses = []
    for index, listener in enumerate(networking.listeners):
        path = f"networking.listeners[{index}]"
        if listener.type == "Unspecified":
            say(f"{path}.type", "is missing", "ZoneIngress or ZoneEgress")
        if not listener.port:
            say(f"{path}.port", "is missing", "1 to 65535")
        if listener.name and listener.name in names:
            say(f"{path}.name", f"{listener.name} is taken by another listener or inbound", "give each its own name")
        names.add(listener.name)
        addresses.append((f"{path}.address", listener.address))
    return addresses
