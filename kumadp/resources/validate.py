"""Rules for resources that are well-formed, checked before anything starts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.addresses import WILDCARDS, canonical, is_host_name, is_ip, with_port
from kumadp.resources.findings import Findings
from kumadp.resources.ignored_fields import check_ignored
from kumadp.resources.kuma_versions import BEFORE_2_14, EVERY, KUMA_2, KUMA_3, SINCE_2_14, Versions
from kumadp.resources.label_rules import check_labels, check_workload
from kumadp.resources.newer_rules import check_backend_ref, check_listeners, check_metrics, check_reachable
from kumadp.resources.sockets import bound_sockets, inbound_address, overlaps, probes_socket
from kumadp.resources.tag_rules import check_gateway_tags, check_inbound_tags, check_tag_characters
from kumadp.resources.types import SERVICE, Dataplane, ZoneIngress, seconds
from kumadp.resources.workload import InboundPorts, workload_of

if TYPE_CHECKING:
    from kumadp.errors import Problem
    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Gateway, Inbound, Networking, Outbound, ZoneEgress

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_MESH = re.compile(r"[0-9a-z_.-]{1,253}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f]")
_MAX_ADDRESS = 255
_LIKE_IP = re.compile(r"[0-9.]++|(?=[^:]*+:)[0-9a-fA-F:.]++")


def check(resource: Resource) -> Findings:
    """Check a resource by the rules of all versions of Kuma, and by those of kumadp."""
    rules = _Check(resource)
    rules.meta()
    check_labels(resource, rules.findings)
    spec = resource.spec
    if isinstance(spec, Dataplane):
        rules.dataplane(spec)
    else:
        rules.zone_proxy(spec)
    rules.overlaps()
    return rules.findings


def fields_without_effect(resource: Resource, version: str) -> list[Problem]:
    """Return the fields of a resource that a control plane of this version accepts and ignores, with what to do."""
    return check(resource).ignored_by(version)


class _Check:
    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.findings = Findings(resource)
        self.fail = self.findings.fail
        self.note = self.findings.note

    def meta(self) -> None:
        name, mesh = self.resource.name, self.resource.mesh
        if not name:
            self.fail("name", "is missing", "give the resource a name")
        elif not _NAME.fullmatch(name):
            self.fail("name", f"{name!r} is not a name", "lower-case letters, digits, - and .")
        elif "_" in name:
            self.findings.fail_in_api("name", f"{name!r} has an underscore", "lower-case letters, digits, - and .")
        if self.resource.kind == "Dataplane" and not mesh:
            self.fail("mesh", "is missing", "most installations have mesh: default")
        elif mesh and not _MESH.fullmatch(mesh):
            self.fail("mesh", f"{mesh!r} is not a name", "lower-case letters, digits, -, _ and .")

    def dataplane(self, spec: Dataplane) -> None:
        networking = spec.networking
        self.address("networking.address", networking.address, required=True)
        self.address("networking.advertisedAddress", networking.advertised_address)
        if networking.gateway is not None and networking.inbound:
            self.fail("networking", "has a gateway and inbounds", "a gateway cannot have inbounds")
        if networking.gateway is not None:
            self.gateway(networking.gateway, spec)
        elif not networking.inbound:
            hint = "add one, for control planes before 2.14"
            self.fail("networking.inbound", "there is no inbound and no gateway", hint, BEFORE_2_14)
        for index, inbound in enumerate(networking.inbound):
            self.inbound(f"networking.inbound[{index}]", networking, inbound)
        for index, outbound in enumerate(networking.outbound):
            self.outbound(f"networking.outbound[{index}]", outbound)
        for path, address in check_listeners(networking, self.findings):
            self.address(path, address, required=True, by=SINCE_2_14)
        if spec.metrics is not None and networking.gateway is None:
            check_metrics(spec.metrics, self.findings)
        self.probes(spec)
        self.transparent_proxying(networking)
        check_ignored(spec, self.findings)
        check_workload(self.resource, networking, self.findings)

    def transparent_proxying(self, networking: Networking) -> None:
        transparent = networking.transparent_proxying
        backends = transparent.reachable_backends if transparent is not None else None
        for index, ref in enumerate(backends.refs if backends is not None else ()):
            check_reachable(ref, f"networking.transparentProxying.reachableBackends.refs[{index}]", self.findings)

    def gateway(self, gateway: Gateway, spec: Dataplane) -> None:
        check_gateway_tags("networking.gateway.tags", gateway.tags, self.findings)
        if gateway.type == "BUILTIN":
            hint = "run your own proxy as a DELEGATED gateway"
            self.fail("networking.gateway.type", "BUILTIN gateways are not supported", hint, KUMA_3)
            for path, value in (("networking.outbound", spec.networking.outbound), ("probes", spec.probes)):
                if value:
                    self.fail(path, "is not allowed for a builtin gateway", "remove it")

    def inbound(self, path: str, networking: Networking, inbound: Inbound) -> None:
        self.required_port(path, inbound.port)
        check_inbound_tags(path, inbound, self.findings)
        self.address(f"{path}.address", inbound.address, names=False)
        self.address(f"{path}.serviceAddress", inbound.service_address, names=False)
        target = workload_of(networking, inbound)
        if (
            inbound.service_address
            and target[1] == inbound.port
            and target[0] in {inbound_address(networking, inbound), networking.address}
        ):
            self.fail(
                f"{path}.servicePort",
                "the inbound would forward to itself",
                "the application needs another port or address",
            )
        probe = inbound.service_probe
        if probe is not None:
            for name, value in (("interval", probe.interval), ("timeout", probe.timeout)):
                if seconds(value, 1) <= 0:
                    self.fail(f"{path}.serviceProbe.{name}", f"{value} is not greater than 0", "write one like 1s")

    def outbound(self, path: str, outbound: Outbound) -> None:
        self.required_port(path, outbound.port)
        self.address(f"{path}.address", outbound.address, names=False)
        if outbound.backend_ref is None:
            if not outbound.tags.get(SERVICE):
                self.fail(f'{path}.tags["{SERVICE}"]', "is missing", "set the consumed service, or a backendRef")
                return
            hint = "write a backendRef to a MeshService"
            self.fail(f"{path}.backendRef", "is missing: the service is named by tags", hint, KUMA_3)
            check_tag_characters(f"{path}.tags", outbound.tags, self.findings, KUMA_2)
            return
        if outbound.tags:
            self.fail(path, "has tags and a backendRef", "keep the backendRef", KUMA_2)
            self.findings.ignored(f"{path}.tags", "remove it", KUMA_3)
        check_backend_ref(outbound.backend_ref, f"{path}.backendRef", self.findings)

    def probes(self, spec: Dataplane) -> None:
        if spec.probes is None:
            return
        if not spec.probes.port:
            # Never refused in a bootstrap request, which kumadp sends without the probes that it serves itself.
            self.findings.fail_in_api("probes.port", "is missing", "1 to 65535", KUMA_2, quiet=True)
        inbounds = InboundPorts(spec.networking)
        seen: set[str] = set()
        for index, endpoint in enumerate(spec.probes.endpoints):
            path = f"probes.endpoints[{index}]"
            number = endpoint.inbound_port
            probed = inbounds.probed(number)
            if probed is None and (not number or spec.networking.gateway is None):
                message = f"no application and no inbound has port {number}" if number else "is missing"
                self.fail(f"{path}.inboundPort", message, f"ports of applications: {inbounds.shown}")
            elif probed is not None and probed.other is not None:
                self.note(
                    f"{path}.inboundPort",
                    f"{number} is the application's port of networking.inbound[{probed.index}], which is probed, "
                    f"and the inbound port of networking.inbound[{probed.other}]",
                )
            for name, value in (("inboundPath", endpoint.inbound_path), ("path", endpoint.path)):
                if not value.startswith("/"):
                    self.fail(f"{path}.{name}", f"{value!r} does not begin with /", "use a path such as /healthz")
                elif _BAD_PERCENT.search(value):
                    self.fail(
                        f"{path}.{name}",
                        f"{value!r} is not a URL path",
                        "write a space as %20",
                    )
            if endpoint.path in seen:
                self.fail(f"{path}.path", f"{endpoint.path} is used twice", "use each path once")
            seen.add(endpoint.path)

    def zone_proxy(self, spec: ZoneIngress | ZoneEgress) -> None:
        networking = spec.networking
        kind = self.resource.kind
        self.fail("type", f"{kind} is not supported", f"a Dataplane with networking.listeners of type {kind}", KUMA_3)
        self.required_port("networking", networking.port)
        self.address("networking.address", networking.address)
        if not networking.address:
            # Seen with 2.8.8 and 2.14.3: the listener without an address fails in the control plane, at each attempt.
            message = "is missing: control planes accept that, but then send no configuration"
            self.note("networking.address", message, "the address that Envoy binds")
        self.address("networking.advertisedAddress", networking.advertised_address)
        is_incomplete = bool(networking.advertised_address) != bool(networking.advertised_port)
        if is_incomplete and isinstance(spec, ZoneIngress):
            self.fail("networking", "advertisedAddress requires advertisedPort, and vice versa", "set both or none")

    def required_port(self, path: str, port: int) -> None:
        if not port:
            self.fail(f"{path}.port", "is missing", "1 to 65535")

    def address(
        self, path: str, value: str, *, required: bool = False, names: bool = True, by: Versions = EVERY
    ) -> None:
        if not value:
            if required:
                self.fail(path, "is missing", "an IP address or a host name", by)
            return
        if canonical(value) in WILDCARDS and not path.startswith(("networking.inbound", "networking.outbound")):
            self.fail(path, f"{value} is not an address that others can reach", "use the address of this host", by)
        if is_ip(value):
            if "%" in value:
                # Kuma's validator accepts none (2.8 to 2.14), and it has no meaning on another host.
                message = f"{value!r} has an IPv6 zone, which neither Kuma nor Envoy accepts"
                self.fail(path, message, "use another address", by)
            return
        looks_like_ip = len(value) > _MAX_ADDRESS or _LIKE_IP.fullmatch(value)
        if looks_like_ip or not names or not is_host_name(value):
            self.fail(path, f"{value!r} is not an IP address" + (" or host name" if names else ""), by=by)

    def overlaps(self) -> None:
        spec = self.resource.spec
        sockets = bound_sockets(self.resource)
        if isinstance(spec, Dataplane):
            sockets += probes_socket(spec)
        for later, earlier in overlaps(sockets):
            where = with_port(later.address, later.port)
            self.fail(
                later.path,
                f"{where} is bound twice, first for {earlier.purpose} ({earlier.path})",
                "choose another port",
            )
