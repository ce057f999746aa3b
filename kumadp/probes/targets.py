"""The applications that the application probe proxy may probe, never kumadp and Envoy themselves."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kumadp.addresses import is_ip, overlap
from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.host.environment import on_kubernetes
from kumadp.host.net.held_ports import HeldPorts
from kumadp.resources.types import Dataplane
from kumadp.resources.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.core.context import Context
    from kumadp.host.net.ports import BindAddress
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.probes")

# Ports that are rejected with a log line each; a client may request all there are.
_MOST_LOGGED = 20


class ProbeTargets:
    """Finds the host of the application that listens on a port.

    ``own``: what kumadp and CoreDNS bind; ``children`` and ``admin``: those of Envoy now. ``address`` is the data
    plane's as the control plane knows it, empty before it is known.
    """

    def __init__(
        self,
        context: Context,
        own: Iterable[BindAddress],
        children: Callable[[], Iterable[int]],
        admin: Callable[[], AdminAddress | None],
    ) -> None:
        self._context = context
        self._own = [(address.host, address.port) for address in own if address.protocol == "tcp"]
        self._children = children
        self._admin = admin
        self._rejected: set[int] = set()
        self._held = HeldPorts(lambda: (os.getpid(), *self._children()))
        # The applications of one Dataplane, which a reload may replace.
        self._applications: tuple[Dataplane | None, Mapping[int, str]] = (None, {})
        self._limited = is_limited(context.settings, context.environ)
        self.address = ""

    async def __call__(self, port: int) -> str | None:
        """Return the host; None if the port must not be probed, empty if it is not known yet."""
        spec = self._context.resource.spec if self._context.resource is not None else None
        dataplane = spec if isinstance(spec, Dataplane) else None
        if self._applications[0] is not dataplane:
            self._applications = (dataplane, applications(dataplane))
        hosts = self._applications[1]
        if self._limited and port not in hosts and port not in self._context.settings.probe_proxy_ports:
            self._reject(port, "no application of the Dataplane has it; --probe-proxy-ports allows it")
            return None
        address = dataplane.networking.address if dataplane is not None else ""
        host = hosts.get(port) or address or self.address or self._context.settings.instance_ip
        if self._is_own(host, port) or (is_ip(host) and await self._held.holds(host, port)):
            self._reject(port, "it is kumadp's or Envoy's own")
            return None
        return host

    def close(self) -> None:
        """Release what was opened to look up listening sockets."""
        self._held.close()

    def _is_own(self, host: str, port: int) -> bool:
        admin = self._admin()
        own = [*self._own, (admin.host, admin.port)] if isinstance(admin, TcpAdmin) else self._own
        return any(port == on and overlap(bound, host) for bound, on in own)

    def _reject(self, port: int, why: str) -> None:
        if port not in self._rejected and len(self._rejected) < _MOST_LOGGED:
            self._rejected.add(port)
            log.warning("application probe proxy: port %d is not probed: %s", port, why)


def applications(dataplane: Dataplane | None) -> Mapping[int, str]:
    """Return the host of each application by its port, as Envoy connects to it behind the inbounds (Kuma 2.8)."""
    if dataplane is None:
        return {}
    workloads = (workload_of(dataplane.networking, inbound) for inbound in dataplane.networking.inbound)
    return {port: host for host, port in workloads}


def is_limited(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Return whether only what the Dataplane names is probed; on Kubernetes the control plane writes the probes."""
    if settings.probe_proxy_allow == "auto":
        return not on_kubernetes(environ)
    return settings.probe_proxy_allow == "dataplane"
