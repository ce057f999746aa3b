"""Names of the mesh in a run: CoreDNS or the embedded resolver, and how long readiness waits for them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.addresses import LOOPBACK, with_port
from kumadp.bootstrap.generation import Generation
from kumadp.core.part import Handed, Part
from kumadp.dns.plan import chosen_coredns, embedded_plan, names_expected, names_missing, plan_dns
from kumadp.dns.resolvconf_watch import ResolvConfWatch
from kumadp.host.net.ports import BindAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.core.previous import Previous
    from kumadp.dns.coredns.service import CoreDnsService
    from kumadp.dns.plan import DnsPlan
    from kumadp.dns.resolver.component import EmbeddedResolver
    from kumadp.dns.resolver.counters import Counters
    from kumadp.dns.resolver.table import HandedNames
    from kumadp.process.child import Child
    from kumadp.resources.dynconf_bodies import DnsBody

log = logging.getLogger("kumadp.dns")

# Kuma 2.14 passes its DNS gate after 15 s too: names may be late, traffic by address must not wait forever (seconds).
DNS_GATE = 15.0
RESOLV_CONF = Path("/etc/resolv.conf")


class DnsPart(Part):
    """Answers names by the plan; what goes wrong costs names alone."""

    name = "dns"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handed: HandedNames | None = None
        self._adopted: Child | None = None
        self._coredns: CoreDnsService | None = None
        self._resolver: EmbeddedResolver | None = None
        self._started = False
        self.plan: DnsPlan | None = None

    async def check(self) -> None:
        """Find the CoreDNS that the settings want; raises BinaryNotFound."""
        self.program = chosen_coredns(self._context.settings)

    def make_plan(self) -> DnsPlan | None:
        """Decide how names are answered, by the settings with their chosen ports; raises SettingsError."""
        self.plan = plan_dns(self._context.settings, self.program, self._context.transparent)
        return self.plan

    async def version(self) -> str:
        """Return the version of the CoreDNS that is to run, empty if there is none."""
        from kumadp.dns.coredns.binary import coredns_version

        if self.plan is None or self.plan.coredns is None:
            return ""
        return await coredns_version(self.plan.coredns, self._context.children_environment)

    @classmethod
    def section_type(cls) -> type[HandedNames]:
        """Return the type of its section of a handover."""
        from kumadp.dns.resolver.table import HandedNames

        return HandedNames

    def adopt(self, previous: Previous) -> None:
        """Claim the CoreDNS of a previous kumadp, and take the names that were handed over."""
        self._adopted = previous.claim_named("coredns")
        if previous.has_section(self.name):
            self._handed = previous.section(self.name, self.section_type())

    async def end_adopted(self) -> None:
        """End an adopted CoreDNS that is of no use; returns when it has ended."""
        if (child := self._adopted) is not None:
            self._adopted = None
            log.info("ending coredns (pid %d) left by the previous kumadp: it is of no use", child.pid)
            await child.stop(self._context.settings.stop_grace)

    async def start(self) -> None:
        """Start CoreDNS or the embedded resolver; raises PortsTaken, SettingsError."""
        plan = self.plan
        if plan is None:
            return
        if plan.coredns is not None and (self._replaces_coredns or self._has_names):
            log.info("the control plane sends names: the embedded resolver answers them, CoreDNS is not used")
            self.plan = plan = embedded_plan(plan, self._context.transparent)
        if plan.coredns is None:
            await self.end_adopted()
            self._start_resolver(plan)
        else:
            coredns = await self._start_coredns(plan, plan.coredns)
            self._started = True
            self._adapt_coredns(coredns, plan)

    @property
    def _replaces_coredns(self) -> bool:
        """Whether the embedded resolver is to replace a CoreDNS: only that has names with Kuma 3."""
        context = self._context
        return context.generation is Generation.KUMA_3 and not names_missing(context.settings, context.generation)

    @property
    def _has_names(self) -> bool:
        """Whether the previous program had the control plane's names, which CoreDNS would not get."""
        handed = self._handed
        return handed is not None and not handed.table.filtered and self._context.settings.dns_mode != "coredns"

    def on_generation(self, generation: Generation) -> None:
        """Switch from CoreDNS to the embedded resolver if the control plane is of Kuma 3 from now on.

        Towards 2 the embedded resolver stays: it answers with both.
        """
        if self._resolver is not None:
            self._adapt_resolver(self._resolver, generation)
        elif self._coredns is not None and self.plan is not None and self._started:
            self._adapt_coredns(self._coredns, self.plan)

    def _adapt_resolver(self, resolver: EmbeddedResolver, generation: Generation) -> None:
        context = self._context
        if generation is Generation.KUMA_2 or names_expected(context.settings, context.resource, context.transparent):
            resolver.on_generation(generation)

    def _adapt_coredns(self, coredns: CoreDnsService, plan: DnsPlan) -> None:
        context, status = self._context, self._context.status
        if not self._replaces_coredns:
            status.set_warning("dns", names_missing(context.settings, context.generation))
            return
        from kumadp.dns.resolver.component import EmbeddedResolver

        log.info("the control plane is of Kuma 3 now: the embedded resolver answers names, CoreDNS is stopped")
        status.ports.pop("coredns metrics", None)
        self._resolver = resolver = EmbeddedResolver(context, plan, RESOLV_CONF, None, coredns.retire())
        self._adapt_resolver(resolver, Generation.KUMA_3)
        context.stack.start(resolver)

    async def _start_coredns(self, plan: DnsPlan, binary: Path) -> CoreDnsService:
        from kumadp.dns.coredns.service import CoreDnsService

        context, status = self._context, self._context.status
        self._coredns = coredns = CoreDnsService(context, plan, binary, RESOLV_CONF, self._adopted)
        status.set_not_ready("dns", "CoreDNS does not answer yet")
        status.ports["dns"] = f"{LOOPBACK}:{plan.port}"
        status.ports["coredns metrics"] = f"{LOOPBACK}:{plan.prometheus_port}"
        answers = await coredns.start(context.bootstrap.corefile_template)
        context.stack.start(ResolvConfWatch(RESOLV_CONF, coredns.follow))
        self._gate = asyncio.create_task(self._open_gate(answers, "CoreDNS has not answered"), name="dns gate")
        return coredns

    def _start_resolver(self, plan: DnsPlan) -> None:
        from kumadp.dns.resolver.component import EmbeddedResolver

        context, status = self._context, self._context.status
        self._resolver = resolver = EmbeddedResolver(context, plan, RESOLV_CONF, self._handed)
        log.info("the embedded resolver answers names on port %d of %s", plan.port, ", ".join(plan.addresses))
        expected = context.standalone or names_expected(context.settings, context.resource, context.transparent)
        if expected:
            status.set_not_ready("dns", "names of the mesh have not come yet")
        else:
            log.info("not waiting for names: the control plane sends them only with transparent proxying")
        status.ports["dns"] = ", ".join(with_port(host, plan.port) for host in plan.addresses)
        context.stack.start(resolver)
        context.stack.start(ResolvConfWatch(RESOLV_CONF, resolver.follow))
        if expected:
            self._gate = asyncio.create_task(self._open_gate(resolver.settled, "no names have come"), name="dns gate")

    async def _open_gate(self, answers: asyncio.Event, late: str) -> None:
        try:
            async with asyncio.timeout(DNS_GATE):
                await answers.wait()
        except TimeoutError:
            log.warning("%s for %.0f s; readiness does not wait any longer", late, DNS_GATE)
        self._context.status.set_not_ready("dns", "")
        self._context.settle()

    async def on_bootstrap(self, prepared: Prepared) -> None:
        """Use the control plane's present Corefile template."""
        if self._coredns is not None and self._resolver is None:
            await self._coredns.use_template(prepared.corefile_template)

    async def apply_names(self, body: DnsBody | None) -> None:
        """Take the names that a control plane of 2.11 or later sends; None: it sends none any more."""
        if self._resolver is not None:
            await self._resolver.apply(body)

    def on_absent(self) -> None:
        """Note that Envoy has its listeners, and none of them serves names as dynamic configuration."""
        if self._resolver is not None:
            self._resolver.on_absent()

    def set_names(self, names: Mapping[str, Iterable[str]]) -> None:
        """Take the names that Dataplane files have now."""
        if self._resolver is not None:
            self._resolver.set_names(names)

    def children(self) -> Sequence[Child]:
        """Return the CoreDNS that runs."""
        if self._coredns is None:
            return (self._adopted,) if self._adopted is not None else ()
        return self._coredns.children

    def kill(self) -> None:
        """Kill CoreDNS at once."""
        if self._coredns is not None:
            self._coredns.kill()
        else:
            super().kill()

    def status(self) -> Mapping[str, object]:
        """Return the section ``dns``."""
        server = self._resolver or self._coredns
        return {"dns": server.status()} if server is not None else {}

    def hand_over(self) -> Handed | None:
        """Return the names of the embedded resolver."""
        names = self._resolver.hand_over() if self._resolver is not None else None
        return Handed(names) if names is not None else None

    def metrics_address(self) -> BindAddress | None:
        """Return where CoreDNS serves its metrics; None while there is no CoreDNS."""
        if self.plan is None or self._coredns is None or not self._coredns.children:
            return None
        return BindAddress(LOOPBACK, self.plan.prometheus_port, "tcp", "CoreDNS metrics", "--dns-prometheus-port")

    def counters(self) -> tuple[Counters, int, Mapping[str, str]] | None:
        """Return counters, number of names and labels of the embedded resolver, also in CoreDNS's place."""
        if self._resolver is not None:
            resolver, labels = self._resolver.resolver, self._resolver.labels or {}
        elif self._coredns is not None and self._coredns.fallback is not None:
            resolver, labels = self._coredns.fallback, {}
        else:
            return None
        return resolver.counters, len(resolver.table), labels
