"""Puts all parts together, in the order of the design."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from kumadp.accesslog.part import start_access_logs
from kumadp.core.phases import Phase
from kumadp.daemon.adoption import left_by, left_in, tidy
from kumadp.daemon.application import NAME as APPLICATION
from kumadp.daemon.application import Application
from kumadp.daemon.configuration import Configuration
from kumadp.daemon.control import relay_socket_path
from kumadp.daemon.drain import Step, plan_drain
from kumadp.daemon.loop import Asked, PastKnown, RunLoop
from kumadp.daemon.ports import (
    check_plan,
    chosen_coredns,
    envoy_addresses,
    min_drain_time,
    own_addresses,
    plan_dns,
    way_of,
)
from kumadp.daemon.servers import resolved_probes, start_probes, start_servers
from kumadp.daemon.systemd import Notifying
from kumadp.dns.part import Names
from kumadp.envoy.base_id import sweep
from kumadp.envoy.drain import EnvoyDrain
from kumadp.errors import ExitCode, KumadpError
from kumadp.host.net.ports import check_ports
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.reexec import interim_responder
from kumadp.host.socket_names import check_names, remove_stale
from kumadp.host.work_dir import open_work_dir
from kumadp.probes.targets import Places, start_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.core.context import Run
    from kumadp.daemon.driven import Outcome
    from kumadp.daemon.ports import DnsPlan, ProbesPlan
    from kumadp.daemon.reload import Renewal
    from kumadp.daemon.sources import Source
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.host.net.ports import BindAddress
    from kumadp.host.reexec.handover import Handover
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

    Reread = Callable[[], tuple[Settings, Resource | None]]

log = logging.getLogger("kumadp.daemon")


class Assembly(EnvoyDrain):
    """The real daemon: what `RunLoop` drives.

    ``reread`` reads settings and Dataplane again; ``flush`` writes what is logged; ``handover`` is what the program
    before us left.
    """

    def __init__(self, run: Run, reread: Reread, flush: Callable[[], object], handover: Handover | None) -> None:
        super().__init__(run)
        self.status = run.status
        self.looks_back = True
        self.loop = RunLoop(self)
        run.post = self.loop.post
        self.notifying = Notifying(run)
        self._reread = reread
        self._flush = flush
        self._handover = handover
        self._exit = contextlib.ExitStack()
        self._configuration = Configuration(run)
        self._names: Names | None = None
        self._renewal: Renewal | None = None
        self.application = Application(run)
        self._gave_up_starting = False

    def is_essential(self, part: str) -> bool:
        """Only Envoy, and the application where we are to run one."""
        return part in {"envoy", APPLICATION}

    def takes(self, number: int) -> bool:
        """Whether a signal is for the application, not for us."""
        return self.application.takes(number)

    async def end_application(self) -> None:
        """Have the application end."""
        await self.application.end()

    async def start(self) -> None:
        """Everything; raises KumadpError."""
        self.notifying.start()
        try:
            await self._start()
        except asyncio.CancelledError:
            self._gave_up_starting = True
            raise

    async def _start(self) -> None:
        from kumadp.envoy.binary import find_envoy

        run, settings = self._run, self._run.settings
        binary = find_envoy(settings.binary_path)
        coredns = chosen_coredns(settings)
        await self._look_back()
        if run.before.application is None:
            self.application.begin(None)
        run.choose_ports()
        settings = run.settings
        dns = plan_dns(settings, coredns, run.transparent)
        probes = await resolved_probes(settings, run.resource, run.environ, run.status)
        own = own_addresses(settings, dns, probes)
        await self._check_addresses(own, dns)
        self._start_servers(probes, own)
        versions = await self._versions(binary, dns)
        source = await self._configuration.make_source(versions, dns, own, serves_probes=probes is not None)
        prepared = self._configuration.prepared = await source.prepare()
        if prepared.fetched is not None:
            self._readiness.widen(prepared.fetched.tree, prepared.fetched.address or run.settings.instance_ip)
            self._places.told = prepared.fetched.address
        await self._start_envoy(binary, source, dns, prepared.corefile_template)
        await run.crashes.find_newest()

    async def _look_back(self) -> None:
        """Take the work directory, and what a kumadp before this one left there or handed over."""
        run, settings = self._run, self._run.settings
        if self._handover is not None:
            run.before = left_by(self._handover)
            run.levels.resume(run.before.levels)
            self._inbound_drained = run.before.inbound_drained
            if run.before.application is not None:
                self.application.begin(run.before.application)
        work = await asyncio.to_thread(
            open_work_dir,
            run.name,
            settings.work_dir,
            settings.socket_dir,
            settings.dns_config_dir,
            run.environ,
            run.before.work,
            sweep,
        )
        self._exit.callback(work.close)
        run.take(work)
        if self._handover is None:
            await run.check_state_dir()
            # On the loop: children are watched from here on. The files are small.
            run.before = left_in(run.work.path)
        for child in run.before.children:
            child.watch_death(run.crashes.note)
        # A stop that came before is acted on first: it drains what serves, whatever the settings say of it now.
        handled = asyncio.get_running_loop().create_future()
        self.loop.post(PastKnown(handled))
        await handled
        if run.status.phase is not Phase.DRAINING:
            await self._part_with_the_unfit()
        run.status.resume(run.before)
        # They have the ports until they have ended.
        await run.before.ended()
        await asyncio.to_thread(tidy, run.work.path, run.before.fifos)
        if run.mesh is None:
            check_names(run.work.sockets, run.name, run.mesh_name)
            # An Envoy that goes on has its sockets there.
            if run.before.envoy is None and run.work.sockets == run.work.path:
                await asyncio.to_thread(remove_stale, run.work.sockets)

    async def _part_with_the_unfit(self) -> None:
        """End what was left and cannot be gone on with by the settings as they are now."""
        run, settings = self._run, self._run.settings
        way = way_of(settings, standalone=run.mesh is not None)
        if run.before.envoy is not None and not run.before.was_led(way):
            log.warning(
                "--xds-relay has changed: the Envoy that was left cannot be gone on with, another one is started"
            )
            await run.before.end_envoy(settings.stop_grace)
            from kumadp.envoy.base_id import sweep

            await asyncio.to_thread(sweep, run.work.path)
            relay_socket_path(run.name, run.work.path, run.environ).unlink(missing_ok=True)
        if not settings.dns_enabled:
            await run.before.end_names(settings.stop_grace)

    async def _check_addresses(self, own: list[BindAddress], dns: DnsPlan | None) -> None:
        run = self._run
        envoy = envoy_addresses(run.resource, standalone=run.mesh is not None, dns=dns, transparent=run.transparent)
        check_plan(own, envoy, run.resource)
        await check_ports([*own, *envoy], held_by=run.before.pids)

    def _start_servers(self, probes: ProbesPlan | None, own: list[BindAddress]) -> None:
        run = self._run
        actions = {"reload": self._reload_asked, "reexec": self._reexec_asked}
        self._readiness = start_servers(run, actions)
        start_access_logs(run)
        if probes is not None:
            start_probes(run.stack, run.status, probes, run.resource)
        self._places = Places(run, own, self._child_pids, self._admin)
        if run.settings.application_probe_proxy_port:
            start_proxy(run, self._places)

    async def _versions(self, binary: Path, dns: DnsPlan | None) -> tuple[EnvoyVersion, str]:
        from kumadp.dns.coredns.binary import coredns_version
        from kumadp.envoy.version import envoy_version, is_supported, supported_versions

        environment = self._run.children_environment

        async def dns_version() -> str:
            found = dns.coredns if dns is not None else None
            return await coredns_version(found, environment) if found is not None else ""

        envoy, coredns = await asyncio.gather(envoy_version(binary, environment), dns_version())
        self.status.facts["versions"] = {"envoy": envoy.version, "coredns": coredns}
        log.info("Envoy %s at %s%s", envoy.version, binary, f", CoreDNS {coredns}" if coredns else "")
        if self._run.mesh is None and not is_supported(envoy.version):
            log.warning(
                "no data plane of Kuma is made for Envoy %s; they are for %s", envoy.version, supported_versions()
            )
        return envoy, coredns

    async def _start_envoy(
        self, binary: Path, source: Source, dns: DnsPlan | None, corefile_template: str | None
    ) -> None:
        from kumadp.daemon.reload import Renewal
        from kumadp.dynconf.part import Dynamic
        from kumadp.envoy.part import Running
        from kumadp.metrics.part import Metering
        from kumadp.otel.part import Exporting
        from kumadp.resources.dynconf_bodies import DNS

        run, configuration = self._run, self._configuration
        names = self._names = Names(run, dns, lambda: running.note()) if dns is not None else None
        running = self._running = Running(run, binary, configuration, names)
        await configuration.start_relay(source, running.epoch_of)
        if names is not None:
            await names.start(corefile_template)
        self._renewal = Renewal(run, configuration, running, source, self._read_again)
        dynamic = None
        if run.mesh is None:
            metering = Metering(run, configuration, admin=self._admin, names=names)
            exporting = Exporting(run, metering.said, lambda: metering.service)
            handlers = exporting.handlers(metering.apply)
            absent: dict[str, Callable[[], None]] = {}
            if names is not None and names.resolving is not None:
                handlers[DNS] = (names.resolving.take,)
                absent[DNS] = names.resolving.on_absent
            dynamic = Dynamic(run, running, configuration.relaying, handlers, absent)
        await running.start(source)
        if dynamic is not None:
            run.stack.start(dynamic.component)
        configuration.start_watch(source)
        if run.chosen is not None:
            run.chosen.close()
        interim_responder.stop()
        for address in inherited.close_unclaimed():
            log.info("%s is not served any more", address)

    def _read_again(self) -> tuple[Settings, Resource | None]:
        settings, resource = self._reread()
        chosen = self._run.chosen
        return chosen.settle(settings, resource) if chosen is not None else (settings, resource)

    def _child_pids(self) -> list[int]:
        envoy = self._running.component if self._running is not None else None
        names = self._names.children if self._names is not None else ()
        return [child.pid for child in (*(envoy.children if envoy is not None else ()), *names)]

    def _admin(self) -> AdminAddress | None:
        envoy = self._running.component if self._running is not None else None
        return envoy.admin.address if envoy is not None else None

    async def stop(self, outcome: Outcome) -> None:
        """Leave everything in reverse order, the application first: it may call out until it has ended."""
        await self.application.stop(outcome)
        await self._run.stack.leave()
        if self._running is not None and self._running.component is not None:
            # Nothing where each has ended in its time.
            self._running.component.kill()
        if self._gave_up_starting or outcome.code == ExitCode.OK:
            # What was to be gone on with; where starting fails it is left to serve, for the next kumadp.
            left = [child for child in self._run.before.children if not child.ended]
            await asyncio.gather(*(child.stop(self._run.settings.stop_grace) for child in left))
        await self._configuration.close()
        if self._running is not None:
            await self._running.forget()
        await asyncio.to_thread(self._exit.close)

    def kill(self) -> None:
        """Kill the children at once; a temporary directory goes too."""
        self.application.kill()
        if self._running is not None and self._running.component is not None:
            self._running.component.kill()
        if self._names is not None:
            self._names.kill()
        for child in self._run.before.children:
            child.send_signal(signal.SIGKILL)
        self._exit.close()

    async def reload(self, why: str) -> str:
        """A new epoch of Envoy, with settings, Dataplane, bootstrap and Corefile template as they are now."""
        if self._renewal is None:
            raise KumadpError("Envoy has not been started yet")
        with self.notifying.reloading():
            if self._configuration.files is not None:
                await self._configuration.files.seen()
            said = await self._renewal.reload(why)
        if self._names is not None:
            await self._names.renew(self._configuration.prepared.corefile_template)
        return said

    def beat(self) -> None:
        """Tell the service manager that the run loop lives."""
        self.notifying.beat()

    async def reexec(self, why: str) -> str:
        """Become the kumadp that is installed now; does not return when it has."""
        from kumadp.daemon.reexec import succeed

        self.status.facts["reexec"] = {"count": self._run.before.count}
        if self._running is None:
            raise KumadpError("Envoy has not been started yet")
        try:
            await succeed(
                self._run,
                self._configuration,
                self._running,
                self._names.children if self._names is not None else (),
                inbound_drained=lambda: self._inbound_drained,
                application=self.application.handed,
                before=self._handover,
                flush=self._flush,
                why=why,
            )
        except Exception as error:
            self.status.facts["reexec"] = {"count": self._run.before.count, "failed": str(error)}
            raise

    async def _reload_asked(self) -> Mapping[str, object]:
        answer = asyncio.get_running_loop().create_future()
        self.loop.post(Asked("reload", "kumadp reload", answer))
        return {"said": await answer}

    async def _reexec_asked(self) -> Mapping[str, object]:
        self.status.facts["reexec"] = {"count": self._run.before.count}
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(self._reexec_refused)
        self.loop.post(Asked("reexec", "kumadp reexec", answer))
        return {"count": self._run.before.count}

    def _reexec_refused(self, answer: asyncio.Future[str]) -> None:
        if not answer.cancelled() and (error := answer.exception()) is not None:
            self.status.facts["reexec"] = {"count": self._run.before.count, "failed": str(error)}

    def drain_steps(self, failed: bool) -> tuple[Step, ...]:
        """What to do before the stop."""
        settings = self._run.settings
        return plan_drain(
            envoy_runs=self.serves,
            inbound_drained=self._inbound_drained,
            drain_time=settings.drain_time,
            min_drain_time=min_drain_time(settings, self._run.environ),
            pre_drain_delay=settings.pre_drain_delay,
            application=self.application.drained_as(failed=failed),
        )
