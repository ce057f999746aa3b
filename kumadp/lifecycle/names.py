"""Names of the mesh: CoreDNS where there is one, and how long readiness waits for it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import Problem, SettingsError
from kumadp.lifecycle.plan import LOOPBACK
from kumadp.process.policy import RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.dns.coredns import CoreDnsComponent
    from kumadp.lifecycle.context import Run
    from kumadp.lifecycle.plan import DnsPlan
    from kumadp.process.child import Child
    from kumadp.process.supervise import ChildReport

log = logging.getLogger("kumadp.lifecycle")

# Kuma 2.14 passes its DNS gate after 15 s too: names may be late, traffic by address must not wait for ever.
DNS_GATE = 15.0


class Names:
    """Starts CoreDNS by the plan, and says so where there is none. ``changed`` hears of another process."""

    def __init__(self, run: Run, plan: DnsPlan, changed: Callable[[], None]) -> None:
        self._run = run
        self._plan = plan
        self._changed = changed
        self._coredns: CoreDnsComponent | None = None

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

    async def start(self, template: str | None) -> None:
        """Write the Corefile and start; ``template`` is the control plane's. What goes wrong costs names alone."""
        plan, run = self._plan, self._run
        if plan.coredns is None:
            alone = f"Envoy's DNS filter answers on {LOOPBACK}:{plan.port}"
            log.warning("no CoreDNS here: %s", alone if run.mesh is not None else "names of the mesh are not answered")
            return
        from kumadp.bootstrap.store import write_private
        from kumadp.dns.coredns import CoreDnsComponent

        settings = run.settings
        try:
            text = await self._corefile(plan.coredns, template)
        except SettingsError as error:
            run.status.note_fatal("coredns", str(error))
            return
        corefile = run.work.dns / "Corefile"
        await asyncio.to_thread(write_private, corefile, text.encode())
        self._coredns = CoreDnsComponent(
            run.command("coredns", (str(plan.coredns), "-conf", str(corefile), "-quiet")),
            plan.port,
            RestartPolicy(settings.coredns_restart_budget, settings.envoy_restart_window),
            grace=settings.stop_grace,
            changed=self._note,
            gave_up=self._gave_up,
            first=run.before.coredns,
        )
        run.status.wait_for("dns", "CoreDNS does not answer yet")
        run.status.ports["dns"] = f"{LOOPBACK}:{plan.port}"
        is_up = run.stack.start(self._coredns, stop_deadline=settings.stop_grace + 1)
        self._gate = asyncio.create_task(self._open_gate(is_up), name="dns gate")

    def _note(self, report: ChildReport) -> None:
        self._run.status.note_child(report)
        self._changed()

    async def _corefile(self, binary: Path, template: str | None) -> str:
        """The user's template, the control plane's, or the built-in one; raises SettingsError."""
        from kumadp.dns.coredns import coredns_plugins
        from kumadp.dns.corefile import CorefileFacts, built_in, render

        settings, plan, folder = self._run.settings, self._plan, str(self._run.work.dns)
        facts = CorefileFacts(
            plan.port, plan.envoy_port, plan.prometheus_port, settings.dns_logging, str(binary), folder
        )
        if own := settings.coredns_config_template_path:
            try:
                return render(await asyncio.to_thread(Path(own).read_text), facts, own)
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "is not UTF-8 text"
                raise SettingsError([Problem("--dns-coredns-config-template-path", f"{own}: {reason}")]) from None
        if template:
            return render(template, facts, "the control plane's corefileTemplate")
        plugins = await coredns_plugins(binary, self._run.children_environment)
        return built_in(facts, plugins, Path("/etc/resolv.conf"))

    async def _open_gate(self, is_up: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(DNS_GATE):
                await is_up.wait()
        except TimeoutError:
            log.warning("CoreDNS has not answered for %.0f s; going on without waiting for it", DNS_GATE)
        self._run.status.wait_for("dns", "")
        self._run.settle()

    def _gave_up(self, story: str) -> None:
        self._run.status.note_fatal("coredns", story)
        self._run.status.wait_for("dns", "")
        self._run.settle()
