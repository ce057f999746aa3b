"""Which application an inbound stands for, and which inbound a virtual probe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.resources.types import Inbound, Networking


def workload_of(networking: Networking, inbound: Inbound) -> tuple[str, int]:
    """Host and port of the application behind an inbound.

    serviceAddress and servicePort default to the inbound's own address and port (Kuma 2.8 to 2.14:
    Dataplane_Networking.ToInboundInterface).
    """
    host = inbound.service_address or inbound.address or networking.address
    return host, inbound.service_port or inbound.port


@dataclass(frozen=True, slots=True)
class Probed:
    """The inbound that a probe's ``inboundPort`` names; ``other`` is a second one with that number as its own port."""

    index: int
    inbound: Inbound
    other: int | None = None


def probed_inbound(networking: Networking, port: int) -> Probed | None:
    """The inbound that ``probes.endpoints[].inboundPort`` means, None if there is none.

    The number is the application's port (Kuma 2.8: the probe generator compares the workload's port). The inbound's own
    port is accepted where it is no application's, since the field's name suggests it. If several inbounds lead to one
    application port the last one counts, as in Kuma, where its cluster replaces the earlier ones.
    """
    by_workload: int | None = None
    by_port: int | None = None
    for index, inbound in enumerate(networking.inbound):
        if workload_of(networking, inbound)[1] == port:
            by_workload = index
        if inbound.port == port:
            by_port = index
    chosen = by_workload if by_workload is not None else by_port
    if chosen is None:
        return None
    other = by_port if by_port != chosen else None
    if other is not None and workload_of(networking, networking.inbound[other])[1] == port:
        other = None
    return Probed(chosen, networking.inbound[chosen], other)
