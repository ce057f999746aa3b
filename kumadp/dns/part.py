"""Names of the mesh: CoreDNS where there is one, and how long readiness waits for it."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV6
from kumadp.daemon.ports import LOOPBACK, names_expected
from kumadp.dns.resolvconf_watch import ResolvConfWatch
from kumadp.errors import KumadpError, SpawnError
from kumadp.host.net.ports import BindAddress, every_address
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.work_dir import COREFILE
from kumadp.process.restart_policy import ChildState, RestartPolicy
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.core.context import Run
    from kumadp.daemon.ports import DnsPlan
    from kumadp.dns.coredns.component import CoreDnsComponent
    from kumadp.dns.coredns.corefile_selector import Corefile, CorefileSelector
    from kumadp.dns.coredns.fallback import FallbackResolver
    from kumadp.dns.resolver.component import Resolving
    from kumadp.dns.resolver.counters import Counters
    from kumadp.process.child import Child, Command
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.dns")

# Kuma 2.14 passes its DNS gate after 15 s too: names may be late, traffic by address must not wait for ever.
DNS_GATE = 15.0
RESOLV_CONF = Path("/etc/resolv.conf")


class Names:
    """Starts CoreDNS by the plan, and says so where there is none. ``changed`` hears of another process."""

    def __init__(self, run: Run, plan: DnsPlan, changed: Callable[[], None]) -> None:
        self._run = run
        self._plan = plan
        self._changed = changed
        self._coredns: CoreDnsComponent | None = None
        self._choice: CorefileSelector | None = None
        self._stand_in: FallbackResolver | None = None
        self._loopback: tuple[str, ...] = (LOOPBACK,)
        self._corefile = ""
        self._origin = ""
        self._missed = False
        self.resolving: Resolving | None = None
        """The embedded resolver, where it answers instead of CoreDNS."""
        run.measuring.count_dns(self._counted)

    @property
    def program(self) -> Path | None:
        """The binary of CoreDNS."""
        return self._plan.coredns

    @property
    def children(self) -> tuple[Child, ...]:
        """The CoreDNS that runs."""
        child = self._coredns.supervisor.child if self._coredns is not None else None
        return (child,) if child is not None and not child.ended else ()

    def kill(self) -> None:
        """Kill CoreDNS at once."""
        if self._coredns is not None:
            self._coredns.supervisor.kill()

    @property
    def metrics_address(self) -> BindAddress | None:
        """Where CoreDNS tells its metrics to Prometheus; None while there is no CoreDNS."""
        if not self.children:
            return None
        return BindAddress(LOOPBACK, self._plan.prometheus_port, "tcp", "CoreDNS metrics", "--dns-prometheus-port")

    async def start(self, template: str | None) -> None:
        """Start CoreDNS; ``template`` is the control plane's. What goes wrong costs names alone.

        A template of the user's that cannot be used is refused (SettingsError), unless a CoreDNS goes on.
        """
        plan, run = self._plan, self._run
        if plan.coredns is None:
            await run.before.end_names(run.settings.stop_grace)
            self._start_resolver()
            return
        from kumadp.dns.coredns.component import CoreDnsComponent, CoreDnsOptions
        from kumadp.dns.coredns.corefile import HEALTH_NAME
        from kumadp.dns.coredns.fallback import FallbackResolver

        settings = run.settings
        self._corefile = await asyncio.to_thread(_text_of, run.work.dns / COREFILE) if run.before.coredns else ""
        self._loopback = await asyncio.to_thread(_loopback)
        ipv6 = every_address() == ANY_IPV6
        envoy = (LOOPBACK, plan.envoy_port)
        self._stand_in = FallbackResolver(
            plan.port, envoy, plan.suffixes, RESOLV_CONF, ipv6=ipv6, networks=plan.networks
        )
        self._choice = self._choose(plan.coredns, template)
        if run.before.coredns is None and not run.before.reexecuted:
            await self._choice.check_user_template()
        self._coredns = CoreDnsComponent(
            self._command,
            CoreDnsOptions(
                port=plan.port,
                policy=RestartPolicy(settings.coredns_restart_budget, settings.envoy_restart_window),
                grace=settings.stop_grace,
                fallback=self._stand_in,
                adopted=run.before.coredns,
                past=run.before.past.get("coredns", PreviousDeaths()),
                health_name=lambda: HEALTH_NAME if HEALTH_NAME in self._corefile else "",
            ),
            on_report=self._note,
            on_give_up=self._gave_up,
            on_warning=functools.partial(run.status.set_warning, "coredns"),
        )
        run.status.set_not_ready("dns", "CoreDNS does not answer yet")
        run.status.ports["dns"] = f"{LOOPBACK}:{plan.port}"
        run.status.ports["coredns metrics"] = f"{LOOPBACK}:{plan.prometheus_port}"
        run.status.asked["dns"] = self._told
        if run.before.coredns is not None:
            # Whether its sockets come before those of the stand-in is not known any more, which gets nothing now.
            inherited.close_unclaimed("udp", plan.port)
            inherited.close_unclaimed("tcp", plan.port)
        elif left := inherited.hosts("udp", plan.port):
            # It was the stand-in that answered when the program before this one was left.
            await self._coredns.use_fallback(left)
        is_up = run.stack.start(self._coredns, stop_deadline=settings.stop_grace + 1)
        run.stack.start(ResolvConfWatch(RESOLV_CONF, self._follow))
        self._gate = asyncio.create_task(self._open_gate(is_up), name="dns gate")

    def _start_resolver(self) -> None:
        from kumadp.dns.resolver.component import Resolving

        run, plan = self._run, self._plan
        self.resolving = resolving = Resolving(run, plan, RESOLV_CONF)
        log.info("the embedded resolver answers names on port %d of %s", plan.port, ", ".join(plan.addresses))
        expected = run.mesh is not None or names_expected(run.settings, run.resource, run.transparent)
        if expected:
            run.status.set_not_ready("dns", "names of the mesh have not come yet")
        else:
            log.info("not waiting for names: the control plane sends them only with transparent proxying")
        run.status.ports["dns"] = ", ".join(
            f"[{host}]:{plan.port}" if ":" in host else f"{host}:{plan.port}" for host in plan.addresses
        )
        run.status.asked["dns"] = resolving.status
        run.named, run.names_left = resolving.name_all, resolving.handed
        run.stack.start(resolving)
        run.stack.start(ResolvConfWatch(RESOLV_CONF, resolving.follow))
        if expected:
            self._gate = asyncio.create_task(self._open_gate(resolving.settled), name="dns gate")

    def _choose(self, binary: Path, template: str | None) -> CorefileSelector:
        from kumadp.dns.coredns.corefile import CorefileFacts
        from kumadp.dns.coredns.corefile_selector import CorefileOptions, CorefileSelector

        run, plan = self._run, self._plan
        own = run.settings.coredns_config_template_path
        facts = CorefileFacts(
            plan.port,
            plan.envoy_port,
            plan.prometheus_port,
            run.settings.dns_logging,
            str(binary),
            str(run.work.dns),
            own,
        )
        return CorefileSelector(
            binary,
            CorefileOptions(
                facts=facts,
                folder=run.work.dns,
                environment=run.children_environment,
                resolv_conf=RESOLV_CONF,
                user_template=own,
                suffixes=plan.suffixes,
                addresses=self._loopback,
            ),
            template,
            functools.partial(run.status.set_warning, "corefile"),
        )

    async def _command(self) -> Command:
        """How to start CoreDNS now, its Corefile written anew."""
        assert self._choice is not None  # noqa: S101 - the component is made after it
        found = await self._choice.select()
        await self._write(found)
        path = self._run.work.dns / COREFILE
        make = self._run.command("coredns", (str(self._plan.coredns), "-conf", str(path), "-quiet"))
        return await make()

    async def _write(self, found: Corefile) -> None:
        from kumadp.host.private_file import write_private

        try:
            await asyncio.to_thread(write_private, self._run.work.dns / COREFILE, found.text.encode())
        except OSError as error:
            raise SpawnError(f"the Corefile cannot be written: {error.strerror}") from error
        self._corefile, self._origin = found.text, found.origin

    async def renew(self, template: str | None) -> None:
        """Serve with the templates as they are now, ``template`` the control plane's; nothing changes but names."""
        if self._choice is not None:
            self._choice.control_plane_template = template
            await self._follow()

    async def _follow(self) -> None:
        """Have CoreDNS serve with what resolv.conf and the templates say now, without a break."""
        coredns, choice = self._coredns, self._choice
        if self._stand_in is not None:
            await self._stand_in.follow()
        if coredns is None or choice is None or not self.children:
            return
        try:
            found = await choice.select()
            if found.text != self._corefile:
                await self._write(found)
        except KumadpError as error:
            self._run.status.set_warning("corefile", f"{error}; CoreDNS goes on as it is")
            return
        # A template may name resolv.conf itself, which CoreDNS reads when it loads: its text is the same then.
        if coredns.reload():
            log.info("CoreDNS reads its Corefile again: %s", found.origin)
        else:
            self._missed = True

    def _counted(self) -> tuple[Counters, int, Mapping[str, str]] | None:
        """What the embedded resolver counted, of its own or in CoreDNS's place."""
        if self.resolving is not None:
            resolver, labels = self.resolving.resolver, self.resolving.labels or {}
        elif self._stand_in is not None and self._stand_in.resolver is not None:
            resolver, labels = self._stand_in.resolver, {}
        else:
            return None
        return resolver.counters, len(resolver.table), labels

    def _told(self) -> Mapping[str, str]:
        answers = "the embedded resolver" if self._coredns is not None and self._coredns.uses_fallback else "CoreDNS"
        return {"answered_by": answers, "corefile": self._origin}

    def _note(self, report: ChildReport) -> None:
        self._run.status.note_child(report)
        self._changed()
        if report.state is ChildState.RUNNING and (self._missed or (self._origin == "" and self._corefile)):
            # What changed while it started; or it was adopted, and what another kumadp wrote may be out of date.
            self._missed = False
            self._following = asyncio.create_task(self._follow(), name="corefile")

    async def _open_gate(self, is_up: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(DNS_GATE):
                await is_up.wait()
        except TimeoutError:
            what = "CoreDNS has not answered" if self._plan.coredns is not None else "no names have come"
            log.warning("%s for %.0f s; going on without waiting for it", what, DNS_GATE)
        self._run.status.set_not_ready("dns", "")
        self._run.settle()

    def _gave_up(self, story: str, stands_in: bool) -> None:
        if stands_in:
            self._run.status.set_warning("coredns", f"{story}; the embedded resolver answers in its place")
        else:
            self._run.status.mark_failed("coredns", story)
        self._run.status.set_not_ready("dns", "")
        self._run.settle()


def _loopback() -> tuple[str, ...]:
    """This host's own loopback addresses: that of IPv6 may be switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return (LOOPBACK,)
    return (LOOPBACK, "::1")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
