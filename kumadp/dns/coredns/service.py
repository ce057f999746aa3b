"""CoreDNS in a run: started with the Corefile that fits, reloaded with its templates, or adopted."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV6, LOOPBACK
from kumadp.dns.coredns.component import CoreDnsComponent, CoreDnsOptions
from kumadp.dns.coredns.corefile import HEALTH_NAME, CorefileFacts
from kumadp.dns.coredns.corefile_selector import CorefileOptions, CorefileSelector
from kumadp.dns.coredns.fallback import FallbackResolver
from kumadp.errors import KumadpError, SpawnError
from kumadp.host.net.ports import every_address
from kumadp.host.private_file import write_private
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.work_dir import COREFILE
from kumadp.process.restart_policy import ChildState, RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.core.context import Context
    from kumadp.dns.coredns.corefile_selector import Corefile
    from kumadp.dns.plan import DnsPlan
    from kumadp.dns.resolver.server import Resolver
    from kumadp.process.child import Child, Command
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.dns")


class CoreDnsService:
    """Owns the CoreDNS component and the Corefile; ``adopted`` is a CoreDNS that runs already."""

    def __init__(self, context: Context, plan: DnsPlan, binary: Path, resolv_conf: Path, adopted: Child | None) -> None:
        self._context = context
        self._plan = plan
        self._binary = binary
        self._resolv_conf = resolv_conf
        self._adopted = adopted
        self._component: CoreDnsComponent | None = None
        self._selector: CorefileSelector | None = None
        self._fallback: FallbackResolver | None = None
        self._corefile = ""
        self._origin = ""
        self._reload_missed = False

    @property
    def children(self) -> tuple[Child, ...]:
        """The CoreDNS that runs."""
        if self._component is None:
            return (self._adopted,) if self._adopted is not None else ()
        child = self._component.supervisor.child
        return (child,) if child is not None and not child.ended else ()

    def kill(self) -> None:
        """Kill CoreDNS at once."""
        if self._component is not None:
            self._component.supervisor.kill()

    @property
    def fallback(self) -> Resolver | None:
        """The resolver that answers in CoreDNS's place, if there has been one."""
        return self._fallback.resolver if self._fallback is not None else None

    def status(self) -> Mapping[str, str]:
        """Return who answers, and where the Corefile is from; JSON types."""
        fallback = self._component is not None and self._component.uses_fallback
        return {"answered_by": "the embedded resolver" if fallback else "CoreDNS", "corefile": self._origin}

    async def start(self, template: str | None) -> asyncio.Event:
        """Start CoreDNS, with the control plane's ``template``; the event is set once it answers.

        Raises SettingsError if a template of the user's cannot be used, unless a CoreDNS is adopted.
        """
        context, plan, settings = self._context, self._plan, self._context.settings
        path = context.work.dns / COREFILE
        self._corefile = await asyncio.to_thread(_text_of, path) if self._adopted is not None else ""
        loopback = await asyncio.to_thread(_loopback)
        ipv6 = every_address() == ANY_IPV6
        self._fallback = FallbackResolver(plan, self._resolv_conf, ipv6=ipv6, connections=context.status.connections)
        self._selector = self._make_selector(template, loopback)
        if self._adopted is None and not context.previous.reexecuted:
            await self._selector.check_user_template()
        self._component = CoreDnsComponent(
            self._command,
            CoreDnsOptions(
                port=plan.port,
                policy=RestartPolicy(settings.coredns_restart_budget, settings.envoy_restart_window),
                grace=settings.stop_grace,
                fallback=self._fallback,
                adopted=self._adopted,
                past=context.previous.past_of("coredns"),
                health_name=lambda: HEALTH_NAME if HEALTH_NAME in self._corefile else "",
            ),
            on_report=self._on_change,
            on_give_up=self._on_failed,
            on_warning=functools.partial(context.status.set_warning, "coredns"),
        )
        if self._adopted is not None:
            # Whether its sockets come before those of the fallback is not known any more, which gets nothing now.
            inherited.close_unclaimed("udp", plan.port)
            inherited.close_unclaimed("tcp", plan.port)
        elif hosts := inherited.hosts("udp", plan.port):
            # It was the fallback that answered when the program before this one was replaced.
            await self._component.use_fallback(hosts)
        return context.stack.start(self._component, stop_deadline=settings.stop_grace + 1)

    def _make_selector(self, template: str | None, loopback: tuple[str, ...]) -> CorefileSelector:
        context, plan, settings = self._context, self._plan, self._context.settings
        own = settings.coredns_config_template_path
        facts = CorefileFacts(
            plan.port,
            plan.envoy_port,
            plan.prometheus_port,
            settings.dns_logging,
            str(self._binary),
            str(context.work.dns),
            own,
        )
        return CorefileSelector(
            self._binary,
            CorefileOptions(
                facts=facts,
                folder=context.work.dns,
                environment=context.children_environment,
                resolv_conf=self._resolv_conf,
                user_template=own,
                suffixes=plan.suffixes,
                addresses=loopback,
            ),
            template,
            functools.partial(context.status.set_warning, "corefile"),
        )

    async def _command(self) -> Command:
        """Write the Corefile, and return how to start CoreDNS with it."""
        assert self._selector is not None  # noqa: S101 - the component is made after it
        await self._write(await self._selector.select())
        path = self._context.work.dns / COREFILE
        make = self._context.command("coredns", (str(self._binary), "-conf", str(path), "-quiet"))
        return await make()

    async def _write(self, corefile: Corefile) -> None:
        try:
            await asyncio.to_thread(write_private, self._context.work.dns / COREFILE, corefile.text.encode())
        except OSError as error:
            raise SpawnError(f"the Corefile cannot be written: {error.strerror}") from error
        self._corefile, self._origin = corefile.text, corefile.origin

    def retire(self) -> Resolver:
        """Have the embedded resolver answer from now on, stop CoreDNS for the rest of the run; return the resolver."""
        assert self._component is not None  # noqa: S101 - it has been started
        assert self._fallback is not None  # noqa: S101 - it has been started
        resolver = self._fallback.make()
        self._component.retire()
        return resolver

    async def use_template(self, template: str | None) -> None:
        """Serve with the templates as they are now, ``template`` the control plane's; nothing changes but names."""
        if self._selector is not None:
            self._selector.control_plane_template = template
            await self.follow()

    async def follow(self) -> None:
        """Have CoreDNS serve with the present resolv.conf and templates, without a break."""
        component, selector = self._component, self._selector
        if self._fallback is not None:
            await self._fallback.follow()
        if component is None or selector is None or not self.children:
            return
        try:
            corefile = await selector.select()
            if corefile.text != self._corefile:
                await self._write(corefile)
        except KumadpError as error:
            self._context.status.set_warning("corefile", f"{error}; CoreDNS keeps its present one")
            return
        # A template may name resolv.conf itself, which CoreDNS reads when it loads: its text is the same then.
        if component.reload():
            log.info("CoreDNS reads its Corefile again: %s", corefile.origin)
        else:
            self._reload_missed = True

    def _on_change(self, report: ChildReport) -> None:
        self._context.status.note_child(report)
        self._context.children_changed()
        adopted_unread = self._origin == "" and self._corefile
        if report.state is ChildState.RUNNING and (self._reload_missed or adopted_unread):
            # What changed while it started; or it was adopted, and what another kumadp wrote may be out of date.
            self._reload_missed = False
            self._following = asyncio.create_task(self.follow(), name="corefile")

    def _on_failed(self, story: str, fallback: bool) -> None:
        status = self._context.status
        if fallback:
            status.set_warning("coredns", f"{story}; the embedded resolver answers in its place")
        else:
            status.mark_failed("coredns", story)
        status.set_not_ready("dns", "")
        self._context.settle()


def _loopback() -> tuple[str, ...]:
    """Return this host's own loopback addresses: IPv6 may be switched off. May block."""
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
