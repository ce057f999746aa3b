"""Rules for metrics, references to services and zone proxy listeners (2.13.5 to 3.0: dataplane_validator.go)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.resources.expressions import problem_of
from kumadp.resources.kuma_versions import BEFORE_2_14, KUMA_2, ONLY_2_8, SINCE_2_13, SINCE_2_14

if TYPE_CHECKING:
    from kumadp.resources.findings import Findings
    from kumadp.resources.types import BackendRef, Metrics, Networking, ReachableBackendRef

KINDS = ("MeshService", "MeshMultiZoneService", "MeshExternalService")
PROMETHEUS = "prometheus"
_IDENTIFIER = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def check_metrics(metrics: Metrics, findings: Findings) -> None:
    """Check type and configuration of metrics; Kuma checks neither for a gateway, and 3.0 has none."""

    def fail(path: str, message: str, hint: str) -> None:
        findings.fail(path, message, hint, KUMA_2)

    if metrics.type != PROMETHEUS:
        fail("metrics.type", f"{metrics.type!r} is not known" if metrics.type else "is missing", f"write {PROMETHEUS}")
        return
    conf = metrics.conf
    port = conf.get("port", 0)
    if not is_port(port):
        fail("metrics.conf.port", f"{port!r} is not a port", "1 to 65535")
    mode = (conf.get("tls") or {}).get("mode", "activeMTLSBackend")
    if "skipMTLS" in conf and conf.get("tls") is not None and mode != _mode_of(skip=bool(conf["skipMTLS"])):
        fail("metrics.conf", "skipMTLS and tls contradict each other", "keep tls and remove skipMTLS")
    wrong = problem_of(str((conf.get("envoy") or {}).get("filterRegex", "")))
    if wrong:
        fail("metrics.conf.envoy.filterRegex", f"is not a regular expression: {wrong}", "Go's syntax (RE2)")
    seen: set[str] = set()
    for index, application in enumerate(conf.get("aggregate") or ()):
        name = str(application.get("name", ""))
        path = f"metrics.conf.aggregate[{index}].name"
        if name in seen:
            fail(path, f"{name!r} is given twice" if name else "is missing twice", "give each application its own name")
        seen.add(name)


def is_port(value: object) -> bool:
    """Return whether ``value`` is a port or 0, as a number or a text (Kuma 2.8 to 2.14: jsonpb accepts both)."""
    text = str(value)
    return not isinstance(value, bool) and text.isascii() and text.isdecimal() and int(text[:9]) <= 65535


def _mode_of(*, skip: bool) -> str:
    return "disabled" if skip else "activeMTLSBackend"


def check_backend_ref(reference: BackendRef, path: str, findings: Findings) -> None:
    """Check the reference of an outbound; ``path`` is its field path."""
    known = f"one of {', '.join(KINDS)}"
    if reference.kind not in KINDS:
        findings.fail(f"{path}.kind", f"{reference.kind!r} is not known" if reference.kind else "is missing", known)
    elif reference.kind == "MeshMultiZoneService":
        findings.fail(f"{path}.kind", f"{reference.kind} is not known", "MeshService", ONLY_2_8)
    if not reference.name and not reference.labels:
        findings.fail(f"{path}.name", "is missing", "set the name or the labels of the target")
    elif not reference.name:
        findings.fail(f"{path}.name", "is missing", "labels alone need a newer control plane", ONLY_2_8)
    if reference.kind in {"MeshService", "MeshMultiZoneService"} and not reference.port:
        findings.fail(f"{path}.port", "is missing", f"{reference.kind} requires a port")


def check_reachable(ref: ReachableBackendRef, path: str, findings: Findings) -> None:
    """Check a reference of ``reachableBackends``, which 2.8 ignores; ``path`` is its field path."""

    def fail(path: str, message: str, hint: str) -> None:
        findings.fail(path, message, hint, SINCE_2_13)

    if ref.kind not in KINDS:
        fail(f"{path}.kind", f"{ref.kind!r} is not known" if ref.kind else "is missing", f"one of {', '.join(KINDS)}")
    if ref.name and not _IDENTIFIER.fullmatch(ref.name):
        fail(f"{path}.name", f"{ref.name!r} is not a name", "lower-case letters, digits, - and .")
    if not ref.name and ref.namespace:
        fail(f"{path}.name", "is missing", "a namespace needs a name")
    elif not ref.name and not ref.labels:
        fail(f"{path}.name", "is missing", "set the name or the labels of the service")
    if (ref.name or ref.namespace) and ref.labels:
        fail(f"{path}.labels", "cannot be given with a name", "keep one of the two")


def check_listeners(networking: Networking, findings: Findings) -> list[tuple[str, str]]:
    """Check names and types of zone proxy listeners, which 2.8 and 2.13 ignore.

    Return paths and values of their addresses, which are not checked here.
    """

    def fail(path: str, message: str, hint: str) -> None:
        findings.fail(path, message, hint, SINCE_2_14)

    if networking.listeners:
        findings.ignored("networking.listeners", "write a ZoneIngress or a ZoneEgress", BEFORE_2_14)
    if networking.gateway is not None and networking.listeners:
        fail("networking.listeners", "are not allowed for a gateway", "remove them")
        return []
    names = {inbound.name or str(inbound.port) for inbound in networking.inbound}
    addresses = []
    for index, listener in enumerate(networking.listeners):
        path = f"networking.listeners[{index}]"
        if listener.type == "Unspecified":
            fail(f"{path}.type", "is missing", "ZoneIngress or ZoneEgress")
        if not listener.port:
            fail(f"{path}.port", "is missing", "1 to 65535")
        if listener.name and listener.name in names:
            fail(f"{path}.name", f"{listener.name} is taken by another listener or inbound", "give each its own name")
        names.add(listener.name)
        addresses.append((f"{path}.address", listener.address))
    return addresses
