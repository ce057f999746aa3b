"""The sockets that Envoy binds for a resource, and those of them that overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kumadp.addresses import ANY_IPV4, ANY_IPV6, LOOPBACK, WILDCARDS, canonical
from kumadp.resources.types import Dataplane, TransparentProxying

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.resources.types import Inbound, Networking


class BoundSocket(Struct, frozen=True):
    """A socket that is bound for a resource."""

    address: str
    port: int
    protocol: Literal["tcp", "udp"]
    path: str
    purpose: str


DEFAULT_PROBES_PORT = 9000


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
                    f"inbound {inbound.title}",
                )
    for index, own in enumerate(networking.listeners):
        yield _tcp(own.address, own.port, f"networking.listeners[{index}].port", f"the listener of a {own.type}")
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
                f"outbound {outbound.title}",
            )


def inbound_address(networking: Networking, inbound: Inbound) -> str:
    """Return the address of the inbound's listener; defaults to networking.address (Dataplane schema)."""
    return inbound.address or networking.address


def overlaps(sockets: Iterable[BoundSocket]) -> Iterable[tuple[BoundSocket, BoundSocket]]:
    """Return each socket whose address and port are bound already, with the earliest one that binds them."""
    by_port: dict[tuple[int, str], BoundPort] = {}
    for later in sockets:
        if not later.port:
            continue
        earlier = by_port.setdefault((later.port, later.protocol), BoundPort()).add(later)
        if earlier is not None:
            yield later, earlier


def probes_socket(spec: Dataplane) -> list[BoundSocket]:
    """Return the socket that kumadp binds for virtual probes, if the Dataplane has any."""
    if spec.probes is None or not spec.probes.endpoints:
        return []
    port = spec.probes.port or DEFAULT_PROBES_PORT
    return [_tcp(spec.networking.address, port, "probes.port", "virtual probes")]


class BoundPort:
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
