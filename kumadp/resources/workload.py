"""The application of a Dataplane: behind an inbound, behind a virtual probe, and its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.resources.types import SERVICE, Dataplane

if TYPE_CHECKING:
    from kumadp.resources.resource import Resource
    from kumadp.resources.types import Inbound, Networking

WORKLOAD_LABEL = "kuma.io/workload"


def workload_of(networking: Networking, inbound: Inbound) -> tuple[str, int]:
    """Return host and port of the application behind an inbound.

    serviceAddress and servicePort default to the inbound's own address and port (Kuma 2.8 to 2.14:
    Dataplane_Networking.ToInboundInterface).
    """
    host = inbound.service_address or inbound.address or networking.address
    return host, inbound.service_port or inbound.port


def service_of(resource: Resource) -> str:
    """Return the service of a Dataplane: the label ``kuma.io/workload``, else the first ``kuma.io/service``, else "".

    The label is what Kuma 3.0 names ``node.cluster`` by, and the tag what Kuma 2 does.
    """
    if label := resource.labels.get(WORKLOAD_LABEL, ""):
        return label
    if not isinstance(resource.spec, Dataplane):
        return ""
    networking = resource.spec.networking
    gateway = networking.gateway.tags.get(SERVICE, "") if networking.gateway is not None else ""
    return next((inbound.service for inbound in networking.inbound if inbound.service), gateway)


_MAX_SHOWN = 20


class Probed(Struct, frozen=True):
    """The inbound of a probe's ``inboundPort``; ``other`` is another inbound with that number as its own port."""

    index: int
    inbound: Inbound
    other: int | None = None


class InboundPorts:
    """The inbounds by the ``inboundPort`` of probes.

    The number is the application's port (Kuma 2.8: the probe generator compares the workload's port). The inbound's own
    port is also accepted, unless an application has it, because the field's name suggests it. If several inbounds lead
    to one application port, the last one is used, as in Kuma, where its cluster replaces the earlier ones.
    """

    def __init__(self, networking: Networking) -> None:
        self._inbounds = networking.inbound
        self._workloads = [workload_of(networking, inbound)[1] for inbound in networking.inbound]
        self._by_workload = {port: index for index, port in enumerate(self._workloads)}
        self._by_port = {inbound.port: index for index, inbound in enumerate(networking.inbound)}
        ports = sorted(self._by_workload)
        more = ["..."] if len(ports) > _MAX_SHOWN else []
        self.shown = ", ".join([*map(str, ports[:_MAX_SHOWN]), *more]) or "none"
        """The ports of applications, for messages."""

    def probed(self, port: int) -> Probed | None:
        """Return the inbound for this number, or None."""
        own = self._by_port.get(port)
        chosen = self._by_workload.get(port, own)
        if chosen is None:
            return None
        is_other = own is not None and own != chosen and self._workloads[own] != port
        return Probed(chosen, self._inbounds[chosen], own if is_other else None)
