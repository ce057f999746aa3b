"""What the application probe proxy may ask, and where: applications alone, never kumadp and Envoy themselves."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from kumadp.addresses import is_ip, overlap
from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.host.environment import on_kubernetes
from kumadp.host.net.ports import every_address, is_held_by
from kumadp.resources.types import Dataplane
from kumadp.resources.workload import workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.core.context import Run
    from kumadp.host.net.ports import BindAddress
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.probes")

# Ports that are refused with a line of log each; a client may ask for all there are.
_MOST_REFUSED = 20


class Places:
    """Where the application that listens on a port is asked.

    ``own``: what kumadp and CoreDNS bind; ``children`` and ``admin``: those of Envoy now. ``told`` is the data plane's
    address as the control plane knows it, once it has said so.
    """

    def __init__(
        self,
        run: Run,
        own: Iterable[BindAddress],
        children: Callable[[], Iterable[int]],
        admin: Callable[[], AdminAddress | None],
    ) -> None:
        self._run = run
        self._own = [(address.host, address.port) for address in own if address.protocol == "tcp"]
        self._children = children
        self._admin = admin
        self._refused: set[int] = set()
        self._limited = is_limited(run.settings, run.environ)
        self.told = ""

    async def __call__(self, port: int) -> str | None:
        """The host; None where it must not be asked, empty where it is not known yet."""
        spec = self._run.resource.spec if self._run.resource is not None else None
        dataplane = spec if isinstance(spec, Dataplane) else None
        known = applications(dataplane)
        if self._limited and port not in known and port not in self._run.settings.probe_proxy_ports:
            self._refuse(port, "it is no application's by the Dataplane; --probe-proxy-ports allows it")
            return None
        address = dataplane.networking.address if dataplane is not None else ""
        host = known.get(port) or address or self.told or self._run.settings.instance_ip
        if self._is_own(host, port) or (
            is_ip(host) and await asyncio.to_thread(is_held_by, (os.getpid(), *self._children()), host, port)
        ):
            self._refuse(port, "it is kumadp's or Envoy's own")
            return None
        return host

    def _is_own(self, host: str, port: int) -> bool:
        admin = self._admin()
        own = [*self._own, (admin.host, admin.port)] if isinstance(admin, TcpAdmin) else self._own
        return any(port == on and overlap(bound, host) for bound, on in own)

    def _refuse(self, port: int, why: str) -> None:
        if port not in self._refused and len(self._refused) < _MOST_REFUSED:
            self._refused.add(port)
            log.warning("application probe proxy: port %d is not asked: %s", port, why)


def applications(dataplane: Dataplane | None) -> Mapping[int, str]:
    """The host of each application by its port, as Envoy finds it behind the inbounds (Kuma 2.8)."""
    if dataplane is None:
        return {}
    workloads = (workload_of(dataplane.networking, inbound) for inbound in dataplane.networking.inbound)
    return {port: host for host, port in workloads}


def is_limited(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Whether only what the Dataplane names is asked; on Kubernetes the control plane writes the probes."""
    if settings.probe_proxy_allow == "auto":
        return not on_kubernetes(environ)
    return settings.probe_proxy_allow == "dataplane"


def is_sourced(settings: Settings, dataplane: Dataplane | None, environ: Mapping[str, str]) -> bool:
    """Whether traffic may be redirected here, so that probes need the address that is passed by.

    kuma-dp (2.9 to 2.14) always takes that address; where IPv6 is not redirected no probe then succeeds over IPv6.
    """
    told = dataplane is not None and dataplane.networking.transparent_proxying is not None
    return told or settings.transparent_proxy or bool(settings.transparent_proxy_config) or on_kubernetes(environ)


def start_proxy(run: Run, places: Places) -> None:
    """Serve the application probe proxy; raises PortsTaken."""
    from kumadp.probes.application_proxy import ApplicationProbeProxy

    spec = run.resource.spec if run.resource is not None else None
    sourced = is_sourced(run.settings, spec if isinstance(spec, Dataplane) else None, run.environ)
    host, port = every_address(), run.settings.application_probe_proxy_port
    proxy = ApplicationProbeProxy(host, port, places, sourced=sourced)
    run.status.counters[proxy.name] = proxy.answered
    run.stack.start(proxy)
    run.status.ports["application probe proxy"] = f"http://{f'[{host}]' if ':' in host else host}:{port}"
