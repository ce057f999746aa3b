"""Rules for resources that are well-formed, checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kumadp.addresses import ANY_IPV4, ANY_IPV6, WILDCARDS, canonical, is_host_name, is_ip, with_port
from kumadp.errors import Problem
from kumadp.resources.newer_rules import KINDS, check_listeners, check_metrics, check_reachable
from kumadp.resources.parse import join
from kumadp.resources.types import Dataplane, TransparentProxying, ZoneEgress, ZoneIngress, seconds
from kumadp.resources.workload import InboundPorts, workload_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.resources.types import Gateway, Inbound, Networking, Outbound

SERVICE = "kuma.io/service"
ZONE = "kuma.io/zone"
PROTOCOL = "kuma.io/protocol"
# Protocols of Kuma's documentation, and others that its validator accepts as well (2.8 to 2.14: ParseProtocol).
PROTOCOLS = ("tcp", "http", "http2", "grpc", "kafka")
_MORE_PROTOCOLS = ("tls", "mysql")
LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_MESH = re.compile(r"[0-9a-z_.-]{1,253}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f]")
_MAX_ADDRESS = 255
_LIKE_IP = re.compile(r"[0-9.]++|(?=[^:]*+:)[0-9a-fA-F:.]++")
_TAG_NAME = re.compile(r"[A-Za-z0-9._:/-]+")
_TAG_VALUE = re.compile(r"[A-Za-z0-9._:-]+")


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A socket that is bound for a resource."""

    address: str
    port: int
    protocol: Literal["tcp", "udp"]
    path: str
    purpose: str


def validate(resource: Resource) -> tuple[list[Problem], list[Problem]]:
    """Return all problems of a resource, and notes that do not prevent its use."""
    check = _Check(resource)
    check.meta()
    spec = resource.spec
    if isinstance(spec, Dataplane):
        check.dataplane(spec)
    else:
        check.zone_proxy(spec)
    check.overlaps(bound_sockets(resource))
    return check.problems, check.notes


def bound_sockets(resource: Resource, transparent: TransparentProxy | None = None) -> list[BoundSocket]:
    """Return the sockets that Envoy binds for a resource.

    With transparent proxying, inbounds and outbounds are redirected to two ports and not bound (Kuma 2.8). The
    configuration ``transparent`` takes precedence over the Dataplane (Kuma 2.11). If the resource sets the admin's
    port, the admin is included, and the listener for ``/ready`` on the same port of the data plane's address.
    """
    spec = resource.spec
    if not isinstance(spec, Dataplane):
        sockets = [_tcp(spec.networking.address, spec.networking.port, "networking.port", resource.kind)]
        admin = spec.networking.admin
    else:
        sockets = list(_dataplane_sockets(spec, _redirect(spec, transparent)))
        admin = spec.networking.admin
    if admin is not None and admin.port:
        path, address = "networking.admin.port", spec.networking.address
        sockets.append(_tcp(LOOPBACK, admin.port, path, "Envoy's admin"))
        if address not in {"", LOOPBACK, *WILDCARDS}:
            sockets.append(_tcp(address, admin.port, path, "/ready for other data planes"))
    return sockets


def _tcp(address: str, port: int, path: str, purpose: str) -> BoundSocket:
    return BoundSocket(address, port, "tcp", path, purpose)


def _redirect(spec: Dataplane, transparent: TransparentProxy | None) -> TransparentProxying | None:
    if transparent is None:
        return spec.networking.transparent_proxying
    inbound, outbound = transparent.inbound, transparent.outbound
    return TransparentProxying(
        redirect_port_inbound=inbound.port if inbound.enabled else 0,
        redirect_port_outbound=outbound.port if outbound.enabled else 0,
    )


def _dataplane_sockets(spec: Dataplane, redirect: TransparentProxying | None) -> Iterable[BoundSocket]:
    networking = spec.networking
    for index, own in enumerate(networking.listeners):
        yield _tcp(own.address, own.port, f"networking.listeners[{index}].port", f"the listener of a {own.type}")
    if redirect is not None and redirect.redirect_port_inbound:
        yield _tcp(
            ANY_IPV4,
            redirect.redirect_port_inbound,
            "networking.transparentProxying.redirectPortInbound",
            "redirected inbound traffic",
        )
    else:
        for index, inbound in enumerate(networking.inbound):
            if inbound.state != "Ignored":
                yield _tcp(
                    inbound_address(networking, inbound),
                    inbound.port,
                    f"networking.inbound[{index}].port",
                    f"inbound {inbound.service}",
                )
    if redirect is not None and redirect.redirect_port_outbound:
        yield _tcp(
            ANY_IPV4,
            redirect.redirect_port_outbound,
            "networking.transparentProxying.redirectPortOutbound",
            "redirected outbound traffic",
        )
    else:
        for index, outbound in enumerate(networking.outbound):
            yield _tcp(
                outbound.address or LOOPBACK,
                outbound.port,
                f"networking.outbound[{index}].port",
                f"outbound {outbound.tags.get(SERVICE, '')}",
            )


def inbound_address(networking: Networking, inbound: Inbound) -> str:
    """Return the address of the inbound's listener; defaults to networking.address (Dataplane schema)."""
    return inbound.address or networking.address


class _Check:
    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def note(self, path: str, message: str, hint: str) -> None:
        file, line = self.resource.where(path)
        self.notes.append(Problem(path, message, hint, file, line))

    def fail(self, path: str, message: str, hint: str = "") -> None:
        file, line = self.resource.where(path)
        self.problems.append(Problem(path, message, hint, file, line))

    def meta(self) -> None:
        if not self.resource.name:
            self.fail("name", "is missing", "give the resource a name")
        elif not _NAME.fullmatch(self.resource.name):
            self.fail("name", f"{self.resource.name!r} is not a name", "lower-case letters, digits, - and .")
        elif "_" in self.resource.name:
            # Control planes of 2.13 and 2.14 accept it in a bootstrap request, but their API and kuma-dp do not.
            self.note("name", f"{self.resource.name!r} has an underscore, which only Kuma 2.8 accepts everywhere", "")
        if self.resource.kind == "Dataplane" and not self.resource.mesh:
            self.fail("mesh", "is missing", "most installations have mesh: default")
        elif self.resource.mesh and not _MESH.fullmatch(self.resource.mesh):
            self.fail("mesh", f"{self.resource.mesh!r} is not a name", "lower-case letters, digits, -, _ and .")

    def dataplane(self, spec: Dataplane) -> None:
        networking = spec.networking
        self.address("networking.address", networking.address, required=True)
        self.address("networking.advertisedAddress", networking.advertised_address)
        if networking.gateway is not None and networking.inbound:
            self.fail("networking", "has a gateway and inbounds", "a gateway cannot have inbounds")
        if networking.gateway is not None:
            self.gateway(networking.gateway, spec)
        elif not networking.inbound and not networking.listeners:
            self.note("networking.inbound", "there is no inbound and no gateway", "only accepted since Kuma 2.14")
        for index, inbound in enumerate(networking.inbound):
            self.inbound(f"networking.inbound[{index}]", networking, inbound)
        for index, outbound in enumerate(networking.outbound):
            self.outbound(f"networking.outbound[{index}]", outbound)
        transparent = networking.transparent_proxying
        backends = transparent.reachable_backends if transparent is not None else None
        for index, ref in enumerate(backends.refs if backends is not None else ()):
            check_reachable(ref, f"networking.transparentProxying.reachableBackends.refs[{index}]", self.fail)
        for path, address in check_listeners(networking, self.fail):
            self.address(path, address, required=True)
        if spec.metrics is not None and networking.gateway is None:
            check_metrics(spec.metrics, self.fail)
        self.probes(spec)

    def gateway(self, gateway: Gateway, spec: Dataplane) -> None:
        self.tags("networking.gateway.tags", gateway.tags, protocols=("tcp",))
        if gateway.type == "BUILTIN":
            for path, value in (("networking.outbound", spec.networking.outbound), ("probes", spec.probes)):
                if value:
                    self.fail(path, "is not allowed for a builtin gateway", "remove it")

    def inbound(self, path: str, networking: Networking, inbound: Inbound) -> None:
        self.required_port(path, inbound.port)
        self.tags(f"{path}.tags", inbound.tags, protocols=PROTOCOLS)
        if inbound.protocol_name and inbound.protocol_name.lower() not in {*PROTOCOLS, *_MORE_PROTOCOLS}:
            self.fail(f"{path}.protocol", f"{inbound.protocol_name!r} is not known", f"one of {', '.join(PROTOCOLS)}")
        self.address(f"{path}.address", inbound.address, names=False)
        self.address(f"{path}.serviceAddress", inbound.service_address, names=False)
        target = workload_of(networking, inbound)
        redirected = (
            networking.transparent_proxying is not None and networking.transparent_proxying.redirect_port_inbound
        )
        if (
            inbound.service_address
            and not redirected
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
        reference = outbound.backend_ref
        if reference is None:
            if not outbound.tags.get(SERVICE):
                self.fail(f'{path}.tags["{SERVICE}"]', "is missing", "set the consumed service, or a backendRef")
            self.tag_characters(f"{path}.tags", outbound.tags)
            return
        if outbound.tags:
            self.fail(path, "has tags and a backendRef", "keep one of the two")
        if reference.kind not in KINDS:
            self.fail(f"{path}.backendRef.kind", f"{reference.kind!r} is not known", f"one of {', '.join(KINDS)}")
        if not reference.name and not reference.labels:
            self.fail(f"{path}.backendRef.name", "is missing", "set the name or the labels of the target")
        if reference.kind in {"MeshService", "MeshMultiZoneService"} and not reference.port:
            self.fail(f"{path}.backendRef.port", "is missing", f"{reference.kind} requires a port")

    def probes(self, spec: Dataplane) -> None:
        if spec.probes is None:
            return
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
                    "",
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

    def tags(self, path: str, tags: Mapping[str, str], *, protocols: tuple[str, ...]) -> None:
        if not tags:
            self.note(path, "are missing", "only accepted since Kuma 2.14, if inbound tags are disabled")
        elif not tags.get(SERVICE):
            self.fail(f'{path}["{SERVICE}"]', "is missing", "every inbound and gateway needs its service")
        if ZONE in tags:
            self.note(f'{path}["{ZONE}"]', "is replaced by the control plane's own zone", "")
        accepted = {*protocols, *_MORE_PROTOCOLS} if len(protocols) > 1 else set(protocols)
        if PROTOCOL in tags and tags[PROTOCOL].lower() not in accepted:
            right = f"one of {', '.join(protocols)}" if len(protocols) > 1 else protocols[0]
            self.fail(f'{path}["{PROTOCOL}"]', f"{tags[PROTOCOL]!r} is not known", right)
        self.tag_characters(path, {name: value for name, value in tags.items() if name != PROTOCOL})

    def tag_characters(self, path: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            if not _TAG_NAME.fullmatch(name):
                self.fail(join(path, name), "is not a valid tag name", "letters, digits and . _ : / -")
            elif not value and name != SERVICE:
                self.fail(join(path, name), "is empty", "set a value or remove it")
            elif value and not _TAG_VALUE.fullmatch(value):
                self.fail(join(path, name), f"{value!r} is not a valid tag value", "letters, digits and . _ : -")

    def required_port(self, path: str, port: int) -> None:
        if not port:
            self.fail(f"{path}.port", "is missing", "1 to 65535")

    def address(self, path: str, value: str, *, required: bool = False, names: bool = True) -> None:
        if not value:
            if required:
                self.fail(path, "is missing", "an IP address or a host name")
            return
        if canonical(value) in WILDCARDS and path.startswith("networking.a"):
            self.fail(path, f"{value} is not an address that others can reach", "use the address of this host")
        if is_ip(value):
            if "%" in value:
                # Kuma's validator accepts none (2.8 to 2.14), and it has no meaning on another host.
                message = f"{value!r} has an IPv6 zone, which neither Kuma nor Envoy accepts"
                self.fail(path, message, "use another address")
            return
        looks_like_ip = len(value) > _MAX_ADDRESS or _LIKE_IP.fullmatch(value)
        if looks_like_ip or not names or not is_host_name(value):
            self.fail(path, f"{value!r} is not an IP address" + (" or host name" if names else ""))

    def overlaps(self, sockets: list[BoundSocket]) -> None:
        spec = self.resource.spec
        if isinstance(spec, Dataplane) and spec.probes is not None and spec.probes.endpoints:
            port = spec.probes.port or 9000
            sockets = [*sockets, _tcp(spec.networking.address, port, "probes.port", "virtual probes")]
        by_port: dict[tuple[int, str], _Bound] = {}
        for later in sockets:
            if not later.port:
                continue
            earlier = by_port.setdefault((later.port, later.protocol), _Bound()).add(later)
            if earlier is not None:
                where = with_port(later.address, later.port)
                self.fail(
                    later.path,
                    f"{where} is bound twice, first for {earlier.purpose} ({earlier.path})",
                    "choose another port",
                )


class _Bound:
    """The sockets on one port. Each is only compared with those on its address and with wildcards, which is fast."""

    def __init__(self) -> None:
        self._count = 0
        self._first: dict[str, tuple[int, BoundSocket]] = {}
        self._any: tuple[int, BoundSocket] | None = None
        self._any_ipv4: tuple[int, BoundSocket] | None = None

    def add(self, socket: BoundSocket) -> BoundSocket | None:
        """Add a socket; return the earliest one whose address overlaps, see `kumadp.addresses.overlap`."""
        address = canonical(socket.address)
        earlier = [self._first.get(address), self._first.get(ANY_IPV6)]
        if address == ANY_IPV6:
            earlier.append(self._any)
        elif address == ANY_IPV4:
            earlier.append(self._any_ipv4)
        elif ":" not in address:
            earlier.append(self._first.get(ANY_IPV4))
        entry = self._count, socket
        self._count += 1
        self._first.setdefault(address, entry)
        self._any = self._any or entry
        if ":" not in address:
            self._any_ipv4 = self._any_ipv4 or entry
        overlapping = [entry for entry in earlier if entry is not None]
        return min(overlapping, key=lambda entry: entry[0])[1] if overlapping else None
