"""Virtual probes and the application probe proxy in a run."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import msgspec.structs

from kumadp.addresses import address_text, is_ip, with_port
from kumadp.core.part import Part
from kumadp.core.redirection import may_be_redirected
from kumadp.errors import Problem, SettingsError
from kumadp.host.net.ports import every_address
from kumadp.probes.plan import plan_probes
from kumadp.probes.targets import ProbeTargets
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.host.net.ports import BindAddress
    from kumadp.probes.plan import ProbesPlan

log = logging.getLogger("kumadp.probes")

# How long the name in networking.address is looked up, if virtual probes need its address (seconds).
NAME_DEADLINE = 5.0


async def resolved_plan(context: Context) -> ProbesPlan | None:
    """Return where virtual probes are served, by address; None if they are not, with the reason in the log.

    Raises SettingsError if an address that was named for them cannot be resolved.
    """
    settings = context.settings
    spec = context.resource.spec if context.resource is not None else None
    plan, why = plan_probes(settings, spec if isinstance(spec, Dataplane) else None, context.environ)
    if why:
        log.info("%s", why)
    if plan is None or is_ip(plan.host):
        return plan
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(NAME_DEADLINE):
            addresses = await loop.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # A name with a label that no name can have is a UnicodeError.
        reason = "not a host name" if isinstance(error, UnicodeError) else getattr(error, "strerror", None)
        reason = reason or f"no answer within {NAME_DEADLINE:.0f} s"
        if settings.virtual_probes_address:
            message = f"{plan.host} cannot be resolved: {reason}"
            raise SettingsError(
                [Problem("--virtual-probes-address", message, "name an address of this host")]
            ) from None
        story = f"networking.address {plan.host} cannot be resolved: {reason}; name one with --virtual-probes-address"
        context.status.mark_failed("virtual probes", story)
        return None
    return msgspec.structs.replace(plan, host=address_text(addresses[0][4]))


class VirtualProbesPart(Part):
    """Serves virtual probes; ``plan`` is there once the ports are planned."""

    name = "virtual probes"

    def __init__(self, context: Context) -> None:
        self._context = context
        self.plan: ProbesPlan | None = None

    async def make_plan(self) -> ProbesPlan | None:
        """Decide where they are served; raises SettingsError."""
        self.plan = await resolved_plan(self._context)
        return self.plan

    async def start(self) -> None:
        """Serve by the plan; raises PortsTaken."""
        from kumadp.probes.virtual_probes import ProbeRoutes, VirtualProbes, routes_of

        context, plan = self._context, self.plan
        if plan is None:
            return
        spec = context.resource.spec if context.resource is not None else None
        generic = plan.generic_ports or not isinstance(spec, Dataplane)
        routes = ProbeRoutes({}, plan.generic_ports) if generic or not isinstance(spec, Dataplane) else routes_of(spec)
        probes = VirtualProbes(plan.host, plan.port, routes, connections=context.status.connections)
        context.status.counters[probes.name] = probes.answered
        context.stack.start(probes)
        context.status.ports["virtual probes"] = f"http://{with_port(plan.host, plan.port)}"


class ProbeProxyPart(Part):
    """Serves the application probe proxy, if its port is set.

    ``own`` are the addresses that kumadp and CoreDNS bind, ``admin`` that of Envoy's admin now.
    """

    name = "application probe proxy"

    def __init__(
        self,
        context: Context,
        own: Callable[[], Iterable[BindAddress]],
        admin: Callable[[], AdminAddress | None],
    ) -> None:
        self._context = context
        self._own = own
        self._admin = admin
        self._targets: ProbeTargets | None = None

    async def start(self) -> None:
        """Serve from now on; raises PortsTaken."""
        from kumadp.probes.application_proxy import ApplicationProbeProxy

        context, port = self._context, self._context.settings.application_probe_proxy_port
        if not port:
            return
        self._targets = ProbeTargets(context, self._own(), self._child_pids, self._admin)
        host = every_address()
        proxy = ApplicationProbeProxy(
            host,
            port,
            self._targets,
            sourced=may_be_redirected(context),
            connections=context.status.connections,
        )
        context.status.counters[proxy.name] = proxy.answered
        context.stack.start(proxy)
        context.status.ports["application probe proxy"] = f"http://{with_port(host, port)}"

    async def on_bootstrap(self, prepared: Prepared) -> None:
        """Take the data plane's address, as the control plane knows it."""
        if self._targets is not None and prepared.fetched is not None:
            self._targets.address = prepared.fetched.address

    async def close(self) -> None:
        """Release what the targets have opened."""
        if self._targets is not None:
            self._targets.close()

    def _child_pids(self) -> list[int]:
        return [child.pid for part in self._context.parts for child in part.children()]
