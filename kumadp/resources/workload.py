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


_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Probed:
    """The inbound that a probe's ``inboundPort`` names; ``other`` is a second one with that number as its own port."""

    index: int
    inbound: Inbound
    other: int | None = None


class InboundPorts:
    """Which inbound a probe's ``inboundPort`` means.

    The number is the application's port (Kuma 2.8: the probe generator compares the workload's port). The inbound's own
    port is accepted where it is no application's, since the field's name suggests it. If several inbounds lead to one
    application port the last one counts, as in Kuma, where its cluster replaces the earlier ones.
    """

    def __init__(self, networking: Networking) -> None:
        self._inbounds = networking.inbound
        self._workloads = [workload_of(networking, inbound)[1] for inbound in networking.inbound]
        self._by_workload = {port: index for index, port in enumerate(self._workloads)}
        self._by_port = {inbound.port: index for index, inbound in enumerate(networking.inbound)}
        ports = sorted(self._by_workload)
        more = ["..."] if len(ports) > _MOST_SHOWN else []
        self.shown = ", ".join([*map(str, ports[:_MOST_SHOWN]), *more]) or "none"
        """The ports of applications, for people."""

    def probed(self, port: int) -> Probed | None:
        """The inbound that is meant by this number, None if there is none."""
        own = self._by_port.get(port)
        chosen = self._by_workload.get(port, own)
        if chosen is None:
            return None
        is_other = own is not None and own != chosen and self._workloads[own] != port
        return Probed(chosen, self._inbounds[chosen], own if is_other else None)
