"""Envoy in a run: its command line, adoption, what its states mean for readiness, and its side of a drain."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.core.events import Requested
from kumadp.core.part import Handed, Part
from kumadp.core.phases import Phase
from kumadp.envoy.adopted_envoy import AdoptedEnvoy, DrainRecord, EnvoySection, EnvoyState
from kumadp.envoy.binary import find_envoy
from kumadp.envoy.drain import EnvoyDrain
from kumadp.envoy.launch import CONFIGURED_BY, configured_by, launch_argv, launch_description, restart_budget
from kumadp.envoy.version import envoy_version, is_supported, supported_versions
from kumadp.errors import HandoverFailed
from kumadp.host.net.ports import BindAddress, check_ports
from kumadp.process.restart_policy import ChildState, RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.core.epochs import EpochObserver
    from kumadp.core.previous import Previous
    from kumadp.envoy.admin import AdminClient
    from kumadp.envoy.component import EnvoyComponent
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.process.child import Child, Command
    from kumadp.process.supervisor import ChildReport
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.envoy")

_RUNNING = frozenset({ChildState.RUNNING, ChildState.RUNNING_BLIND})


class EnvoyPart(Part):
    """Owns the Envoy component.

    ``relayed``: whether Envoy's configuration comes from kumadp's relay, which a hot restart needs.
    """

    name = "envoy"

    def __init__(self, context: Context, relayed: Callable[[], bool]) -> None:
        self._context = context
        self._relayed = relayed
        self._observers: list[EpochObserver] = []
        self._epochs: dict[int, int] = {}
        self._adopted: AdoptedEnvoy | None = None
        self._recorded = False
        self.drain = EnvoyDrain(context, lambda: self.component, lambda: self._adopted)
        self.started_as: tuple[str, ...] = ()
        self.component: EnvoyComponent | None = None

    def observe(self, observer: EpochObserver) -> None:
        """Have ``observer`` follow the epochs."""
        self._observers.append(observer)

    async def check(self) -> None:
        """Find the binary; raises BinaryNotFound."""
        self.program = find_envoy(self._context.settings.binary_path)

    async def version(self) -> EnvoyVersion:
        """Return the version of the binary, with a warning in the log if Kuma ships with another one."""
        assert self.program is not None  # noqa: S101 - `check` comes first
        version = await envoy_version(self.program, self._context.children_environment)
        if not self._context.standalone and not is_supported(version.version):
            log.warning(
                "Envoy %s is not a version that any supported Kuma release ships with (supported: %s)",
                version.version,
                supported_versions(),
            )
        return version

    @classmethod
    def section_type(cls) -> type[EnvoySection]:
        """Return the type of its section of a handover."""
        return EnvoySection

    def adopt(self, previous: Previous) -> None:
        """Claim the Envoys of a previous kumadp: a current one, and one that drains."""
        section = previous.section(self.name, EnvoySection)
        state = section.state if section is not None else previous.recorded("envoy", EnvoyState)
        if section is not None:
            self.started_as = section.started_as
            self.drain.resume(section.drained or ("inbound" if section.inbound_drained else ""), section.drained_at)
        else:
            self.started_as = previous.recorded("started_as", tuple[str, ...]) or ()
            drained = previous.recorded("drained", DrainRecord)
            if drained is not None and state is not None:
                self.drain.resume(drained.scope, drained.since)
        if state is not None and state.coming is not None:
            from kumadp.envoy.takeover import resumed

            state = resumed(state, previous.pids)
        current = previous.claim(state.current) if state is not None else None
        if state is None or current is None:
            return
        retiring = previous.claim(state.retiring) if state.retiring is not None else None
        self._adopted = AdoptedEnvoy(state, current, retiring)
        self._adopted.begin_fallback(lambda: Path((previous.work or self._context.work).path))
        # They speak to the relay before the component is there.
        self._epochs[current.pid] = state.generation
        if retiring is not None:
            self._epochs[retiring.pid] = state.generation - 1

    async def end_unfit(self) -> bool:
        """End adopted Envoys that get their configuration another way than the settings want; True if there were."""
        way = configured_by(self._context)
        if self._adopted is None or all(one == way for one in self.started_as if one.startswith(CONFIGURED_BY)):
            return False
        log.warning("cannot adopt Envoy left by the previous kumadp, as --xds-relay has changed; starting another one")
        children, self._adopted, self.started_as = self._adopted_children(), None, ()
        self._epochs.clear()
        await asyncio.gather(*(child.stop(self._context.settings.stop_grace) for child in children))
        return True

    @property
    def adopted(self) -> tuple[int, int] | None:
        """The generation and pid of an Envoy that is adopted, None if there is none."""
        return (self._adopted.state.generation, self._adopted.current.pid) if self._adopted is not None else None

    def epoch_of(self, pid: int) -> int:
        """Return the epoch of an Envoy by its pid, 0 if it is not known."""
        return self._epochs.get(pid, 0)

    def child_facts(self, pid: int) -> Mapping[str, object]:
        """Return the epoch of an Envoy."""
        return {"epoch": self._epochs[pid]} if pid in self._epochs else {}

    @property
    def admin_address(self) -> AdminAddress | None:
        """Where the admin of the Envoy that serves listens."""
        return self.component.admin.address if self.component is not None else None

    @property
    def admin(self) -> AdminClient | None:
        """The admin of the Envoy that serves."""
        return self.component.admin if self.component is not None else None

    async def get_admin(self, path: str) -> bytes | None:
        """Return what the admin of the Envoy that serves answers to a GET; None if there is no usable answer."""
        from kumadp.envoy.admin import AdminUnreachable

        if self.admin is None:
            return None
        try:
            status, body = await self.admin.get(path)
        except AdminUnreachable:
            return None
        return body if status == 200 else None

    def recheck_admin(self, listeners: Collection[str] | None) -> None:
        """Have the proof that the admin is private repeated for these listeners, None: for all."""
        if self.component is not None:
            self.component.recheck_admin(listeners)

    def on_accepted(self, _type_url: str) -> None:
        """Look at once whether Envoy serves: it has accepted a response of the relay."""
        if self.component is not None:
            self.component.on_accepted()

    def command(self, prepared: Prepared, binary: Path) -> Callable[[], Awaitable[Command]]:
        """Return what makes Envoy's command for this bootstrap, by the settings as they are now."""
        return self._context.command(
            "envoy", launch_argv(self._context.settings, prepared, binary), lock_death_signal=True
        )

    async def start(self) -> None:
        """Start Envoy, or adopt the one that was left; returns when it serves."""
        from kumadp.envoy.component import EnvoyComponent
        from kumadp.envoy.options import EnvoyCallbacks, EnvoyOptions, EpochCallbacks, HotRestart
        from kumadp.envoy.reload import Plan

        context, settings, adopted = self._context, self._context.settings, self._adopted
        prepared, binary = context.bootstrap, self.program
        assert binary is not None  # noqa: S101 - `check` comes first
        if isinstance(prepared.admin, TcpAdmin):
            address = BindAddress(
                prepared.admin.host, prepared.admin.port, "tcp", "Envoy's admin", "networking.admin.port"
            )
            await check_ports([address], held_by=context.previous.pids)
        previously = self.started_as
        await self.ran(prepared, binary)
        wanted = self.started_as
        if adopted is not None:
            self.started_as = previously
        context.status.set_not_ready("envoy", "Envoy is being started")
        # Without the relay an epoch could not get its configuration: control planes take one stream a data plane.
        hot = context.standalone or self._relayed() or not prepared.dynamic
        self.component = EnvoyComponent(
            Plan(self.command(prepared, binary), prepared.admin, prepared.dynamic),
            EnvoyOptions(
                RestartPolicy(restart_budget(settings, context.environ), settings.envoy_restart_window),
                settings.stop_grace,
                hot_restart=HotRestart(context.work.path, settings.drain_time, settings.reload_deadline)
                if hot
                else None,
                adopted=adopted,
                drained=self.drain.scope if adopted is not None else "",
                past=context.previous.past_of("envoy"),
            ),
            EnvoyCallbacks(
                on_change=self._on_change,
                on_not_ready=self._on_reason,
                on_unresponsive=self._on_silence,
                is_stopping=lambda: context.status.phase in {Phase.DRAINING, Phase.STOPPING},
                epochs=EpochCallbacks(
                    self._on_started,
                    self._on_live,
                    self._on_ended,
                    self._on_takeover,
                    self._on_no_hot_restart,
                    self._on_progress,
                ),
            ),
        )
        if not self._relayed() and prepared.dynamic:
            from kumadp.envoy.listener_changes import ListenerChanges

            context.stack.start(ListenerChanges(self.component.admin, self.component.recheck_admin))
        context.serving_begun.set()
        # The current epoch, then one that drains.
        await context.stack.enter(self.component, stop_deadline=2 * settings.stop_grace + 2)
        if self.started_as != wanted:
            context.post(Requested("reload", "Envoy would be started differently now"))

    async def ran(self, prepared: Prepared, binary: Path) -> None:
        """Note that Envoy runs with this from now on; a kumadp after this one reads it in the work directory."""
        self.program = binary
        self._context.bootstrap = prepared
        self._context.status.ports["admin"] = str(prepared.admin)
        self.started_as = await asyncio.to_thread(launch_description, self._context, prepared, binary)
        self._context.children_changed()

    async def apply(self, settings: Settings) -> Sequence[str]:
        """Take times and the binary, for the next epoch."""
        if self.component is not None:
            self.component.set_reload_times(settings.drain_time, settings.reload_deadline)
        return ()

    @property
    def recordable(self) -> bool:
        """Whether the component has its Envoy: until then what the previous kumadp recorded is the truth."""
        return self.component is not None and self._recorded

    def _adopted_children(self) -> tuple[Child, ...]:
        return self._adopted.children if self._adopted is not None else ()

    def children(self) -> Sequence[Child]:
        """Return the Envoys that run, also those that are not adopted yet."""
        return self.component.children if self.component is not None else self._adopted_children()

    def record(self) -> Mapping[str, object]:
        """Return the epochs, and how Envoy was started."""
        exported = self.component.export(starting=True) if self.component is not None else None
        if exported is None:
            return {}
        drained = {"drained": DrainRecord(self.drain.scope, self.drain.since)} if self.drain.scope else {}
        return {"envoy": exported, "started_as": self.started_as, **drained}

    def hand_over(self) -> Handed:
        """Return the epochs; raises HandoverFailed while Envoy is being started or replaced."""
        if self.component is None or (state := self.component.export()) is None:
            raise HandoverFailed("Envoy is being started or replaced", "retry when it serves")
        return Handed(
            EnvoySection(state, self.started_as, self.drain.scope == "inbound", self.drain.scope, self.drain.since)
        )

    def kill(self) -> None:
        """Kill every Envoy at once."""
        if self.component is not None:
            self.component.kill()
        else:
            super().kill()

    async def close(self) -> None:
        """Make sure that no Envoy of the component outlives it."""
        if self._adopted is not None:
            self._adopted.end_fallback()
        if self.component is not None:
            self.component.kill()

    # A drain

    @property
    def serves(self) -> bool:
        """Whether an Envoy runs: ours, or one that was left and is not adopted yet."""
        if self.component is not None and self.component.is_running:
            return True
        return any(not child.ended for child in self._adopted_children())

    @property
    def inbound_drained(self) -> bool:
        """Whether inbound has drained, so that a stop waits for nothing (SIGUSR2 came before, Kuma 2.8)."""
        return self.drain.scope == "inbound"

    def status(self) -> Mapping[str, object]:
        """Return what is drained."""
        return self.drain.status()

    # What the component reports

    def _on_change(self, report: ChildReport) -> None:
        context, status = self._context, self._context.status
        if report.state in _RUNNING or report.pid is None:
            for observer in self._observers:
                observer.on_serving(serves=report.state in _RUNNING)
        status.note_child(report)
        if report.state in {ChildState.EXITED, ChildState.BACKOFF, ChildState.FATAL}:
            status.forget_ready()
        if report.state in {ChildState.EXITED, ChildState.BACKOFF} and status.phase is Phase.READY:
            status.set_not_ready("envoy", report.last_exit)
            status.move(Phase.STARTING, report.last_exit)
        elif report.state in _RUNNING:
            status.set_not_ready("envoy", "")
            context.settle()
        context.children_changed()

    def _on_reason(self, reason: str) -> None:
        if reason:
            self._context.status.set_not_ready("envoy", reason)

    def _on_silence(self, reason: str) -> None:
        status = self._context.status
        if status.phase not in {Phase.STARTING, Phase.READY}:
            # One that drains says so.
            return
        if not reason:
            log.info("Envoy answers again")
            # One that is still to be adopted is READY when that is done.
            if self.component is not None and self.component.is_up:
                status.set_not_ready("envoy", "")
                self._context.settle()
            return
        status.set_not_ready("envoy", reason)
        status.forget_ready()
        if status.phase is Phase.READY:
            status.move(Phase.STARTING, reason)

    def _on_started(self, epoch: int, pid: int) -> None:
        self._epochs[pid] = epoch
        self._recorded = True
        for child in self.component.children if self.component is not None else ():
            if child.pid == pid:
                child.set_log_fields(epoch=epoch)
        for observer in self._observers:
            observer.on_epoch_started(epoch, pid)
        self._context.children_changed()

    def _on_live(self, epoch: int) -> None:
        self._context.status.facts["epoch"] = epoch
        for observer in self._observers:
            observer.on_epoch_live(epoch)
        self._context.children_changed()

    def _on_ended(self, epoch: int, pid: int, expected: bool) -> None:
        self._epochs.pop(pid, None)
        for observer in self._observers:
            observer.on_epoch_ended(epoch, expected=expected)
        self._context.children_changed()

    def _on_no_hot_restart(self, reason: str) -> None:
        self._context.status.set_warning("envoy", f"{reason}; a reload is rejected, and a restart costs connections")

    def _on_takeover(self, active: bool) -> None:
        for observer in self._observers:
            observer.on_takeover(active=active)
        self._context.children_changed()

    def _on_progress(self) -> None:
        for callback in self._context.status.progressed:
            callback()
