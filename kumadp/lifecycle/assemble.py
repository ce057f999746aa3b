"""Puts all parts together: the only file that knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from importlib import import_module
from typing import TYPE_CHECKING

from kumadp.addresses import is_ip
from kumadp.errors import BinaryNotFound, KumadpError
from kumadp.host.environment import child_environment, fate_of_children, find_container_sign
from kumadp.host.ports import Address, check_ports
from kumadp.host.workdir import open_work_dir
from kumadp.lifecycle.component import Stack
from kumadp.lifecycle.control import relay_socket_path
from kumadp.lifecycle.drain import Step, plan_drain
from kumadp.lifecycle.kuma import Fetched
from kumadp.lifecycle.loop import Outcome, PartEnded, Refused, RunLoop
from kumadp.lifecycle.names import Names
from kumadp.lifecycle.phases import Phase
from kumadp.lifecycle.plan import (
    LOOPBACK,
    check_plan,
    envoy_addresses,
    envoy_budget,
    own_addresses,
    plan_dns,
    plan_probes,
)
from kumadp.lifecycle.status import Status
from kumadp.process.child import Command
from kumadp.process.policy import ChildState, RestartPolicy
from kumadp.resources.types import Dataplane
from kumadp.settings.model import secret_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from kumadp.envoy.component import EnvoyComponent
    from kumadp.errors import ControlPlaneRefused
    from kumadp.host.workdir import WorkDir
    from kumadp.lifecycle.plan import DnsPlan, ProbesPlan
    from kumadp.lifecycle.relaying import Relaying
    from kumadp.lifecycle.sources import Prepared, Source
    from kumadp.process.supervise import ChildReport
    from kumadp.relay.disk import Content, LastGood, LastGoodStore
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings
    from kumadp.standalone.mesh import Mesh

log = logging.getLogger("kumadp.lifecycle")

# How long the name in networking.address is asked for, where virtual probes need its address (seconds).
NAME_DEADLINE = 5.0


class Assembly:
    """The real daemon: what `RunLoop` drives. ``mesh`` is given in standalone mode, ``resource`` where there is one."""

    def __init__(
        self, settings: Settings, resource: Resource | None, mesh: Mesh | None, environ: Mapping[str, str]
    ) -> None:
        self.settings = settings
        self._resource = resource
        self._mesh = mesh
        self._environ = environ
        self._name = resource.name if resource is not None else settings.name
        self.status = Status(self._name, "standalone" if mesh is not None else "control plane")
        self.loop = RunLoop(self)
        self.stack = Stack(lambda name, error: self.loop.post(PartEnded(name, error)))
        self._exit = contextlib.ExitStack()
        self._envoy: EnvoyComponent | None = None
        self._names: Names | None = None
        self._relaying: Relaying | None = None
        self._store: LastGoodStore | None = None
        self._last_good: LastGood | None = None
        self.work: WorkDir
        self._inbound_drained = False
        self.children_environment: Mapping[str, str] = child_environment(environ, secret_variables())

    def is_essential(self, part: str) -> bool:
        """Only Envoy."""
        return part == "envoy"

    async def start(self) -> None:
        """Everything, in the order of the design; raises KumadpError."""
        from kumadp.dns.coredns import find_coredns
        from kumadp.envoy.binary import find_envoy

        settings = self.settings
        binary = find_envoy(settings.binary_path)
        coredns = find_coredns(settings.coredns_path) if settings.dns_enabled else None
        if coredns is None and settings.dns_enabled and os.sep in settings.coredns_path:
            raise BinaryNotFound(f"no CoreDNS: {settings.coredns_path} is not there", "check --dns-coredns-path")
        dns = plan_dns(settings, coredns)
        own = await self._own_addresses(dns)
        standalone = self._mesh is not None
        envoy = envoy_addresses(self._resource, standalone=standalone, dns=dns)
        check_plan(own, envoy, self._resource)
        await check_ports([*own, *envoy])
        await self._open_work_dir()
        self._start_servers()
        self._start_probes()
        source = await self._make_source(binary, dns, own)
        prepared = await source.prepare()
        await self._start_relay(source, prepared)
        if dns is not None:
            self._names = Names(self, dns, standalone=standalone)
            await self._names.start(prepared.corefile_template)
        await self._start_envoy(binary, prepared, source)

    async def _open_work_dir(self) -> None:
        settings = self.settings
        work = await asyncio.to_thread(
            open_work_dir, self._name, settings.work_dir, settings.socket_dir, settings.dns_config_dir, self._environ
        )
        self._exit.callback(work.close)
        self.work = work

    async def _own_addresses(self, dns: DnsPlan | None) -> list[Address]:
        spec = self._resource.spec if self._resource is not None else None
        dataplane = spec if isinstance(spec, Dataplane) else None
        plan, why = plan_probes(self.settings, dataplane, self._environ)
        if why:
            log.info("%s", why)
        self._probes = await self._resolve(plan) if plan is not None else None
        return own_addresses(self.settings, dns, self._probes)

    async def _resolve(self, plan: ProbesPlan) -> ProbesPlan | None:
        """The plan with an address in place of a host name; None, and a story in the status, where there is none."""
        if is_ip(plan.host):
            return plan
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(NAME_DEADLINE):
                found = await loop.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or f"no answer within {NAME_DEADLINE:.0f} s"
            story = (
                f"networking.address {plan.host} cannot be resolved: {reason}; name one with --virtual-probes-address"
            )
            self.status.note_fatal("virtual probes", story)
            return None
        return dataclasses.replace(plan, host=str(found[0][4][0]))

    def _start_servers(self) -> None:
        from kumadp.lifecycle.control import ControlServer, control_socket_path
        from kumadp.lifecycle.readiness import ReadinessServer

        port = self.settings.readiness_port
        self.stack.start(ReadinessServer(LOOPBACK, port, lambda: self.status.ready_state))
        self.status.ports["readiness"] = f"http://{LOOPBACK}:{port}/ready"
        try:
            path = control_socket_path(self._name, self._environ)
        except OSError as error:
            log.warning("no control socket: %s", error)
            return
        self.stack.start(ControlServer(path, self.status.snapshot))

    def _start_probes(self) -> None:
        from kumadp.probes.virtual import Routes, VirtualProbes, routes_of

        plan = self._probes
        if plan is None:
            return
        spec = self._resource.spec if self._resource is not None else None
        if plan.generic_ports or not isinstance(spec, Dataplane):
            routes = Routes({}, plan.generic_ports)
        else:
            routes = routes_of(spec)
        self.stack.start(VirtualProbes(plan.host, plan.port, routes))
        host = f"[{plan.host}]" if ":" in plan.host else plan.host
        self.status.ports["virtual probes"] = f"http://{host}:{plan.port}"

    async def _make_source(self, binary: Path, dns: DnsPlan | None, own: list[Address]) -> Source:
        from kumadp.dns.coredns import coredns_version
        from kumadp.envoy.version import envoy_version
        from kumadp.lifecycle.kuma import KumaClient
        from kumadp.lifecycle.sources import KumaSource, StandaloneSource

        environment = self.children_environment

        async def dns_version() -> str:
            found = dns.coredns if dns is not None else None
            return await coredns_version(found, environment) if found is not None else ""

        envoy, coredns = await asyncio.gather(envoy_version(binary, environment), dns_version())
        self.status.facts["versions"] = {"envoy": envoy.version, "coredns": coredns}
        log.info("Envoy %s at %s%s", envoy.version, binary, f", CoreDNS {coredns}" if coredns else "")
        if self._mesh is not None:
            return StandaloneSource(self.settings, self._mesh, self.work, own, dns)
        settings, serves = self.settings, self._probes is not None
        versions = (envoy, coredns)
        client = KumaClient(settings, self._resource, self.work, dns, versions, serves_probes=serves)
        relay = relay_socket_path(self._name, self.work.path, self._environ) if settings.xds_relay == "on" else None
        if relay is not None:
            # In 40 ms, while the control plane is asked.
            self._relay_module = asyncio.create_task(asyncio.to_thread(import_module, "kumadp.lifecycle.relaying"))
            self._last_good = await self._read_last_good(envoy.version)
        return KumaSource(client, self.work, own, self.status, relay_path=relay, last_good=self._last_good_bootstrap())

    async def _read_last_good(self, envoy_version: str) -> LastGood | None:
        """What is on disk of the last run, and the store for what comes; None where nothing is kept."""
        from kumadp.host.statedir import open_state_dir
        from kumadp.relay.disk import Binding, LastGoodStore

        settings = self.settings
        if settings.last_good == "off":
            return None
        directory = await asyncio.to_thread(open_state_dir, self._name, settings.state_dir, self._environ)
        if directory is None:
            log.info("no state directory: the last good configuration is not kept")
            return None
        mesh = self._resource.mesh if self._resource is not None else settings.mesh
        binding = Binding(mesh, self._name, settings.cp_address, envoy_version)
        self._store = LastGoodStore(directory, binding, self._content, max_age=settings.last_good_max_age)
        return await self._store.load()

    def _content(self) -> Content | None:
        return self._relaying.content() if self._relaying is not None else None

    def _last_good_bootstrap(self) -> Fetched | None:
        found = self._last_good
        return Fetched(found.bootstrap, found.corefile_template, found.confirmed) if found is not None else None

    async def _start_relay(self, source: Source, prepared: Prepared) -> None:
        from kumadp.lifecycle.sources import KumaSource

        if not isinstance(source, KumaSource) or source.relay_path is None or prepared.upstream is None:
            return
        relaying = (await self._relay_module).Relaying
        stale = source.later is not None
        self._relaying = relaying(
            source.relay_path,
            source.client,
            prepared,
            self.status,
            epoch_of=self._epoch_of,
            refused=self._refused,
            memory=self._last_good.memory if stale and self._last_good is not None else None,
            stale=stale,
        )
        if self._store is not None:
            self._relaying.keep_in(self._store)
        await self.stack.enter(self._relaying.relay)

    def _epoch_of(self, pid: int) -> int:  # noqa: ARG002
        return 0

    def _refused(self, error: ControlPlaneRefused) -> None:
        if self.settings.on_control_plane_refusal == "serve":
            self.status.worry("control plane", str(error))
        else:
            self.loop.post(Refused(error))

    async def _start_envoy(self, binary: Path, prepared: Prepared, source: Source) -> None:
        from kumadp.bootstrap.address import TcpAdmin
        from kumadp.envoy.argv import envoy_argv
        from kumadp.envoy.component import EnvoyComponent

        settings = self.settings
        if isinstance(prepared.admin, TcpAdmin):
            address = Address(prepared.admin.host, prepared.admin.port, "tcp", "Envoy's admin", "networking.admin.port")
            await check_ports([address])
        level = settings.envoy_log_level or ("warning" if settings.log_level == "warn" else settings.log_level)
        argv = envoy_argv(
            binary,
            prepared.config_path,
            drain_time=settings.drain_time,
            log_level=level,
            component_log_level=settings.envoy_component_log_level,
            concurrency=settings.concurrency,
            extra=settings.envoy_args,
        )
        self.status.ports["admin"] = str(prepared.admin)
        self.status.wait_for("envoy", "Envoy is being started")
        self._envoy = EnvoyComponent(
            self.command("envoy", argv),
            prepared.admin,
            RestartPolicy(envoy_budget(settings, self._environ), settings.envoy_restart_window),
            grace=settings.stop_grace,
            dynamic=prepared.dynamic,
            changed=self._envoy_changed,
            reason=self._envoy_reason,
            leaving=lambda: self.status.phase in {Phase.DRAINING, Phase.STOPPING},
        )
        await self.stack.enter(self._envoy, stop_deadline=settings.stop_grace + 2)
        follower = source.follower(self._envoy.admin)
        if follower is not None:
            self.stack.start(follower)

    def command(self, name: str, argv: tuple[str, ...]) -> Callable[[], Awaitable[Command]]:
        """What makes a child's command, asked at each start."""
        fate = fate_of_children(self.settings.on_parent_death, find_container_sign(self._environ))
        command = Command(argv, name, self.children_environment, fate)

        async def make() -> Command:
            return command

        return make

    def _envoy_changed(self, report: ChildReport) -> None:
        self.status.note_child(report)
        self._tell_relay(report)
        if report.state in {ChildState.EXITED, ChildState.BACKOFF} and self.status.phase is Phase.READY:
            self.status.wait_for("envoy", report.last_exit)
            self.status.move(Phase.STARTING, report.last_exit)
        elif report.state is ChildState.RUNNING:
            self.status.wait_for("envoy", "")
            self.settle()

    def _tell_relay(self, report: ChildReport) -> None:
        if self._relaying is None:
            return
        relay = self._relaying.relay
        if report.state is ChildState.STARTING and report.pid is not None:
            relay.envoy_started(0, report.pid)
        elif report.state is ChildState.RUNNING:
            relay.envoy_live(0)
        elif report.state is ChildState.EXITED:
            relay.envoy_ended(0, expected=False)

    def _envoy_reason(self, reason: str) -> None:
        if reason:
            self.status.wait_for("envoy", reason)

    def settle(self) -> None:
        """READY once nothing holds it back."""
        if self.status.phase is Phase.STARTING and not self.status.reasons and self._envoy is not None:
            self.status.move(Phase.READY, "Envoy is LIVE with its listeners")

    async def stop(self) -> None:
        """Leave everything in reverse order."""
        await self.stack.leave()
        await asyncio.to_thread(self._exit.close)

    def kill(self) -> None:
        """Kill the children at once; a temporary directory goes too."""
        if self._envoy is not None:
            self._envoy.kill()
        if self._names is not None:
            self._names.kill()
        self._exit.close()

    async def reload(self, why: str) -> str:  # noqa: ARG002
        """Not yet."""
        raise KumadpError("not offered yet")

    async def reexec(self, why: str) -> str:  # noqa: ARG002
        """Not yet."""
        raise KumadpError("not offered yet")

    def drain_steps(self) -> tuple[Step, ...]:
        """What to do between the first signal and the stop."""
        runs = self._envoy is not None and self._envoy.runs
        return plan_drain(envoy_runs=runs, inbound_drained=self._inbound_drained, drain_time=self.settings.drain_time)

    async def fail_health_checks(self) -> None:
        """Ask Envoy to fail its health checks."""
        if self._envoy is not None:
            await self._envoy.fail_health_checks()

    async def drain_inbound(self) -> None:
        """Ask Envoy to drain inbound. It counts even when Envoy does not answer (Kuma 2.8: once, then stop at once)."""
        self._inbound_drained = True
        if self._envoy is not None:
            await self._envoy.drain_inbound()

    async def envoy_gone(self) -> None:
        """Return once Envoy has ended."""
        if self._envoy is not None:
            await self._envoy.gone()


async def run_daemon(
    settings: Settings,
    resource: Resource | None,
    mesh: Mesh | None,
    environ: Mapping[str, str],
    notes: tuple[str, ...],
    shown: Mapping[str, str],
) -> Outcome:
    """Run a data plane to its end; ``notes`` and the ``shown`` settings are logged first."""
    for note in notes:
        log.warning("%s", note)
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in shown.items()) or "all defaults")
    assembly = Assembly(settings, resource, mesh, environ)
    outcome = await assembly.loop.run()
    level = logging.INFO if outcome.code == 0 else logging.ERROR
    log.log(level, "exit code %d: %s", outcome.code, outcome.why)
    return outcome
