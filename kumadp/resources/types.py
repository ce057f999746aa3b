"""Typed resources, converted from a parsed tree. Durations in seconds."""

from __future__ import annotations

from typing import Any

import msgspec

from kumadp.durations import SECOND, parse_nanoseconds

SERVICE = "kuma.io/service"
PROTOCOL = "kuma.io/protocol"


class _Message(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Fields are snake_case here and camelCase on the wire; unknown ones are only kept in the tree."""


class Health(_Message, frozen=True):
    """Health set by the platform."""

    ready: bool = False


class ServiceProbe(_Message, frozen=True):
    """Checks of the application; interval and timeout as written, see `seconds`."""

    interval: str = ""
    timeout: str = ""
    unhealthy_threshold: int = 0
    healthy_threshold: int = 0
    tcp: dict[str, Any] | None = None


class Inbound(_Message, frozen=True):
    """A service of this data plane."""

    port: int = 0
    service_port: int = 0
    service_address: str = ""
    address: str = ""
    tags: dict[str, str] = {}
    health: Health | None = None
    service_probe: ServiceProbe | None = None
    state: str = "Ready"
    name: str = ""
    protocol_name: str = msgspec.field(default="", name="protocol")

    @property
    def service(self) -> str:
        """The tag ``kuma.io/service``; empty without tags."""
        return self.tags.get(SERVICE, "")

    @property
    def title(self) -> str:
        """The service, else the name, else the port: what messages call it."""
        return self.service or self.name or str(self.port)

    @property
    def protocol(self) -> str:
        """The field ``protocol`` (2.14), else the tag ``kuma.io/protocol``, else tcp; in lower case."""
        return (self.protocol_name or self.tags.get(PROTOCOL, "tcp")).lower()


class BackendRef(_Message, frozen=True):
    """A consumed service by reference."""

    kind: str = ""
    name: str = ""
    port: int = 0
    labels: dict[str, str] = {}


class Outbound(_Message, frozen=True):
    """A consumed service."""

    address: str = ""
    port: int = 0
    tags: dict[str, str] = {}
    backend_ref: BackendRef | None = None

    @property
    def title(self) -> str:
        """The consumed service: its tag, else the name or the labels of the reference."""
        if self.backend_ref is None:
            return self.tags.get(SERVICE, "")
        labels = ",".join(f"{name}={value}" for name, value in sorted(self.backend_ref.labels.items()))
        return self.backend_ref.name or labels


class Gateway(_Message, frozen=True):
    """This data plane is a gateway."""

    tags: dict[str, str] = {}
    type: str = "DELEGATED"


class ReachableBackendRef(_Message, frozen=True):
    """A service that is reachable."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    port: int = 0
    labels: dict[str, str] = {}


class ReachableBackends(_Message, frozen=True):
    """Services that are reachable, by reference."""

    refs: tuple[ReachableBackendRef, ...] = ()


class TransparentProxying(_Message, frozen=True):
    """Transparent proxying."""

    redirect_port_inbound: int = 0
    redirect_port_outbound: int = 0
    direct_access_services: list[str] = []
    redirect_port_inbound_v6: int = msgspec.field(default=0, name="redirectPortInboundV6")
    reachable_services: list[str] = []
    ip_family_mode: str = "UnSpecified"
    reachable_backends: ReachableBackends | None = None


class Admin(_Message, frozen=True):
    """Envoy's admin."""

    port: int = 0


class Listener(_Message, frozen=True):
    """A listener of a zone proxy that is part of a Dataplane (2.14)."""

    type: str = "Unspecified"
    address: str = ""
    port: int = 0
    name: str = ""
    state: str = "Ready"


class Networking(_Message, frozen=True):
    """Addresses, inbounds, outbounds."""

    address: str = ""
    advertised_address: str = ""
    gateway: Gateway | None = None
    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    transparent_proxying: TransparentProxying | None = None
    admin: Admin | None = None
    listeners: tuple[Listener, ...] = ()


class Endpoint(_Message, frozen=True):
    """One virtual probe."""

    inbound_port: int = 0
    inbound_path: str = ""
    path: str = ""


class Probes(_Message, frozen=True):
    """Virtual probes."""

    port: int = 0
    endpoints: tuple[Endpoint, ...] = ()


class Metrics(_Message, frozen=True):
    """Metrics of this data plane."""

    name: str = ""
    type: str = ""
    conf: dict[str, Any] = {}


class Dataplane(_Message, frozen=True):
    """A data plane proxy."""

    networking: Networking = Networking()
    metrics: Metrics | None = None
    probes: Probes | None = None


class ZoneNetworking(_Message, frozen=True):
    """Addresses of a zone proxy."""

    address: str = ""
    port: int = 0
    advertised_address: str = ""
    advertised_port: int = 0
    admin: Admin | None = None


class ZoneIngress(_Message, frozen=True):
    """The way into a zone."""

    networking: ZoneNetworking = ZoneNetworking()


class ZoneEgress(_Message, frozen=True):
    """The way out of a zone."""

    networking: ZoneNetworking = ZoneNetworking()


Spec = Dataplane | ZoneIngress | ZoneEgress
SPECS: dict[str, type[Dataplane | ZoneIngress | ZoneEgress]] = {
    "Dataplane": Dataplane,
    "ZoneIngress": ZoneIngress,
    "ZoneEgress": ZoneEgress,
}
# Proxy types as in --proxy-type and the bootstrap request, by kind.
PROXY_TYPES = {"Dataplane": "dataplane", "ZoneIngress": "ingress", "ZoneEgress": "egress"}


def seconds(duration: str, default: float) -> float:
    """Return the seconds of a Go duration such as ``1m`` or ``.3s``; ``default`` if it is empty."""
    return parse_nanoseconds(duration) / SECOND if duration else default
