"""The parts of the daemon, in the order in which they start.

To add a feature, write its package with a `kumadp.core.part.Part` and add one line to `make_parts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.accesslog.part import AccessLogPart
from kumadp.daemon.application import ApplicationPart
from kumadp.daemon.control import ControlPart
from kumadp.daemon.file_changes import FileChangesPart
from kumadp.daemon.log_levels import LogLevelsPart
from kumadp.daemon.ports import check_plan, envoy_addresses, own_addresses
from kumadp.daemon.program_versions import ProgramVersionsPart
from kumadp.daemon.readiness import ReadinessPart
from kumadp.daemon.sidecar_facts import dns_listener, sidecar_of
from kumadp.dns.part import DnsPart
from kumadp.envoy.part import EnvoyPart
from kumadp.host.log.secrets import register
from kumadp.host.net.ports import check_ports
from kumadp.metrics.own_page import OwnMetricsPage
from kumadp.otel.environment import read_environment
from kumadp.probes.part import ProbeProxyPart, VirtualProbesPart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.controlplane.bootstrap_client import Sidecar
    from kumadp.controlplane.part import ControlPlanePart
    from kumadp.core.context import Context
    from kumadp.core.part import Part
    from kumadp.host.net.ports import BindAddress
    from kumadp.host.reexec.handover import Handover
    from kumadp.relay.part import RelayPart
    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings
    from kumadp.standalone.mesh import Mesh

    Reread = Callable[[], tuple[Settings, Resource | None]]
    Action = Callable[[], Awaitable[Mapping[str, object]]]


class Launch(Struct, frozen=True):
    """What the daemon gets beside its context.

    ``reread`` reads settings and Dataplane again; ``flush`` writes what is logged, ``log_status`` is the status of the
    log's output; ``handover`` is what the previous program left; ``mesh`` is that of standalone mode.
    """

    reread: Reread
    flush: Callable[[], object]
    log_status: Callable[[], Mapping[str, object]]
    mesh: Mesh | None = None
    handover: Handover | None = None


class Parts:
    """The parts of a run: ``ordered`` as they start, and by name those that others depend on."""

    control_plane: ControlPlanePart | None = None
    relay: RelayPart | None = None

    def __init__(self, context: Context, launch: Launch, actions: Mapping[str, Action]) -> None:
        self._context = context
        self._own: list[BindAddress] = []
        for secret in read_environment(context.environ).secrets():
            register(secret)
        self.application = ApplicationPart(context)
        self.dns = DnsPart(context)
        self.virtual_probes = VirtualProbesPart(context)
        self.envoy = EnvoyPart(context, lambda: self.relay is not None and self.relay.active)
        self.versions = ProgramVersionsPart(context, self.envoy, self.dns)
        self.ordered = make_parts(context, launch, actions, self)

    async def plan_ports(self) -> None:
        """Decide what is bound, and check it; raises SettingsError, ResourceError, PortsTaken."""
        context = self._context
        dns, probes = self.dns.make_plan(), await self.virtual_probes.make_plan()
        self._own = own_addresses(context.settings, dns, probes)
        envoy = envoy_addresses(
            context.resource, standalone=context.standalone, dns=dns, transparent=context.transparent
        )
        check_plan(self._own, envoy, context.resource)
        await check_ports([*self._own, *envoy], held_by=context.previous.pids)

    def own_addresses(self) -> list[BindAddress]:
        """Return what kumadp and CoreDNS bind."""
        return self._own

    def sidecar(self) -> Sidecar:
        """Return what the bootstrap request reports of this sidecar."""
        context, serves_probes = self._context, self.virtual_probes.plan is not None
        return sidecar_of(
            context.settings, context.environ, self.dns.plan, context.transparent, serves_probes=serves_probes
        )


def make_parts(context: Context, launch: Launch, actions: Mapping[str, Action], parts: Parts) -> list[Part]:
    """Return all parts, in the order in which they start."""
    envoy, dns, own = parts.envoy, parts.dns, parts.own_addresses
    own_page = OwnMetricsPage(context.status.snapshot)
    own_page.count_dns(dns.counters)
    log_levels = LogLevelsPart(context, lambda: envoy.admin, launch.log_status)
    envoy.observe(log_levels)
    actions = {**actions, **envoy.drain.actions()}
    control = ControlPart(context, actions, {"log-level": log_levels.order}, {"/metrics": own_page.page})
    first: list[Part] = [parts.application, log_levels, control, ReadinessPart(context)]
    probes: list[Part] = [parts.virtual_probes, ProbeProxyPart(context, own, lambda: envoy.admin_address)]
    if launch.mesh is not None:
        from kumadp.standalone.part import StandalonePart

        standalone = StandalonePart(
            context, launch.mesh, own, lambda: dns_listener(dns.plan), lambda: envoy.admin, dns.set_names
        )
        return [*first, *probes, parts.versions, standalone, dns, envoy, FileChangesPart(context)]
    from kumadp.controlplane.bootstrap_part import BootstrapPart
    from kumadp.controlplane.part import ControlPlanePart
    from kumadp.daemon.generation_notes import GenerationNotesPart
    from kumadp.dynconf.part import DynconfPart
    from kumadp.metrics.part import MetricsPart
    from kumadp.otel.part import OtelPart
    from kumadp.relay.part import RelayPart
    from kumadp.resources.dynconf_bodies import DNS

    plane = parts.control_plane = ControlPlanePart(context, lambda: parts.versions.versions, parts.sidecar, own)
    relay = parts.relay = RelayPart(context, plane)
    plane.connect(relay)
    relay.connect(envoy)
    envoy.observe(relay)
    relay.on_stream_opened(plane.on_stream_opened)
    metrics = MetricsPart(context, admin=lambda: envoy.admin_address, coredns=dns.metrics_address, own=own_page.page)
    otel = OtelPart(
        context, metrics.exposition, lambda: metrics.service or context.name, lambda: metrics.attribute_names
    )
    # After a re-execution clients wait for them; else the bootstrap request leaves before they are imported.
    serving: list[Part] = [AccessLogPart(context), *probes]
    handlers = {**otel.handlers(metrics.apply_policy), DNS: (dns.apply_names,)}
    dynconf = DynconfPart(context, handlers, {DNS: dns.on_absent}, lambda: relay.active)
    envoy.observe(dynconf)
    relay.on_configuration_accepted(envoy.on_accepted)
    relay.on_configuration_accepted(dynconf.on_accepted)
    return [
        *first,
        *(serving if launch.handover is not None else ()),
        parts.versions,
        GenerationNotesPart(context),
        plane,
        *(serving if launch.handover is None else ()),
        BootstrapPart(plane),
        relay,
        dns,
        metrics,
        otel,
        envoy,
        dynconf,
        FileChangesPart(context, plane.token, relay.retry),
    ]
