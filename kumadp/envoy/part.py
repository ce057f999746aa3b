"""Envoy in this run: its command line, what its states mean for readiness, who is told of its epochs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.core.phases import Phase
from kumadp.daemon.adoption import forget, records, write_source
from kumadp.daemon.log_levels import envoy_level
from kumadp.daemon.loop import Asked
from kumadp.daemon.ports import envoy_budget, way_of
from kumadp.envoy.argv import envoy_argv
from kumadp.envoy.component import EnvoyComponent
from kumadp.envoy.options import EnvoyCallbacks, EnvoyOptions, EpochCallbacks, HotRestart
from kumadp.envoy.reload import Plan
from kumadp.host.net.ports import BindAddress, check_ports
from kumadp.host.state_file import StateFile
from kumadp.process.restart_policy import ChildState, RestartPolicy
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kumadp.core.context import Run
    from kumadp.daemon.configuration import Configuration
    from kumadp.daemon.sources import Prepared, Source
    from kumadp.dns.part import Names
    from kumadp.host.state_file import ChildRecord
    from kumadp.process.child import Command
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.envoy")


class Running:
    """Owns the Envoy component; ``names`` has a further child, for the state file."""

    def __init__(self, run: Run, binary: Path, configuration: Configuration, names: Names | None) -> None:
        self._run = run
        self.binary = binary
        self._configuration = configuration
        self._names = names
        self._epochs: dict[int, int] = {}
        run.epoch_of = self._epochs.get
        if (left := run.before.envoy) is not None:
            # It speaks to the relay before it is gone on with.
            self._epochs[left.current.pid] = left.state.generation
            if left.retiring is not None:
                self._epochs[left.retiring.pid] = left.state.generation - 1
        self._noted = 0
        self._began = False
        self._state = StateFile(run.work.path, lambda reason: run.status.set_warning("state file", reason))
        self.started_as: tuple[str, ...] = ()
        self.component: EnvoyComponent | None = None
        self.serves: Callable[[bool], None] = lambda _there: None
        """Hears that there is an Envoy which serves, also that another one has taken over, and that there is none."""

    def epoch_of(self, pid: int) -> int:
        """The epoch of an Envoy by its pid, 0 where it is not known."""
        return self._epochs.get(pid, 0)

    def command(self, prepared: Prepared, binary: Path) -> Callable[[], Awaitable[Command]]:
        """What makes Envoy's command for this bootstrap, by the settings as they are now."""
        return self._run.command("envoy", self._argv(prepared, binary))

    def _argv(self, prepared: Prepared, binary: Path) -> tuple[str, ...]:
        settings = self._run.settings
        return envoy_argv(
            binary,
            prepared.config_path,
            drain_time=settings.drain_time,
            log_level=envoy_level(settings),
            component_log_level=settings.envoy_component_log_level,
            concurrency=settings.concurrency,
            extra=settings.envoy_args,
        )

    def _start_as(self, prepared: Prepared) -> tuple[str, ...]:
        """How Envoy is started, to be compared: without its bootstrap, and with what tells an upgraded binary."""
        argv = self._argv(prepared, self.binary)
        found = self.binary.stat()
        program = f"{argv[0]} {found.st_ino} {found.st_mtime_ns}"
        return (
            program,
            way_of(self._run.settings, standalone=self._run.mesh is not None),
            *(one for one in argv[1:] if one != argv[2]),
        )

    async def start(self, source: Source) -> None:
        """Start Envoy, or go on with the one that was left; returns when it serves."""
        run, settings = self._run, self._run.settings
        prepared = self._configuration.prepared
        if isinstance(prepared.admin, TcpAdmin):
            address = BindAddress(
                prepared.admin.host, prepared.admin.port, "tcp", "Envoy's admin", "networking.admin.port"
            )
            await check_ports([address], held_by=run.before.pids)
        await self.ran(prepared, self.binary)
        wanted = self.started_as
        if run.before.envoy is not None:
            self.started_as = run.before.started_as
        run.status.set_not_ready("envoy", "Envoy is being started")
        # Without the relay an epoch could not get its configuration: control planes take one stream a data plane.
        hot = run.mesh is not None or self._configuration.relaying is not None or not prepared.dynamic
        self.component = EnvoyComponent(
            Plan(self.command(prepared, self.binary), prepared.admin, prepared.dynamic),
            EnvoyOptions(
                RestartPolicy(envoy_budget(settings, run.environ), settings.envoy_restart_window),
                settings.stop_grace,
                hot_restart=HotRestart(run.work.path, settings.drain_time, settings.reload_deadline) if hot else None,
                adopted=run.before.envoy,
                inbound_drained=run.before.inbound_drained and run.before.envoy is not None,
                past=run.before.past.get("envoy", PreviousDeaths()),
            ),
            EnvoyCallbacks(
                on_change=self._changed,
                on_not_ready=self._reason,
                on_unresponsive=self._silent,
                is_stopping=lambda: run.status.phase in {Phase.DRAINING, Phase.STOPPING},
                epochs=EpochCallbacks(self._started, self._live, self._ended, self._hand_over, self._no_hot_restart),
            ),
        )
        if (relaying := self._configuration.relaying) is not None:
            # Imported late: only with a relay, whose reader of messages it needs.
            from kumadp.relay.admin_watch import Privacy

            recheck = self.component.recheck_admin
            privacy = Privacy(relaying.relay.snapshot, lambda: self._configuration.prepared.admin, recheck)
            relaying.answered = privacy.answered
            privacy.look()
        elif prepared.dynamic:
            from kumadp.envoy.listener_changes import ListenerChanges

            run.stack.start(ListenerChanges(self.component.admin, self.component.recheck_admin))
        run.levels.admin = lambda: self.component.admin if self.component is not None else None
        run.envoy_up.set()
        # The current epoch, then one that drains.
        await run.stack.enter(self.component, stop_deadline=2 * settings.stop_grace + 2)
        follower = source.follower(self.component.admin)
        if follower is not None:
            run.stack.start(follower)
        if self.started_as != wanted:
            run.post(Asked("reload", "Envoy would be started otherwise now"))

    async def ran(self, prepared: Prepared, binary: Path) -> None:
        """Envoy runs with this from now on; a kumadp after this one finds it in the work directory."""
        self.binary = binary
        self._configuration.prepared = prepared
        self._run.status.ports["admin"] = str(prepared.admin)
        self.started_as = await asyncio.to_thread(self._start_as, prepared)
        self.note()
        if self._run.keeps and prepared.fetched is not None:
            await asyncio.to_thread(write_source, self._run.work.path, prepared.fetched)

    async def forget(self) -> None:
        """Nothing is left for another kumadp."""
        self._noted += 1
        await self.written()
        await asyncio.to_thread(self._state.remove)
        await asyncio.to_thread(forget, self._run.work.path)

    async def written(self) -> None:
        """Return once what was found out of the children is on disk."""
        await self._state.written()

    def note(self) -> None:
        """Write down where everything is, and which children there are for the next kumadp to adopt."""
        # Until this Envoy is ours to tell of, what a kumadp before this one wrote is the truth.
        if self.component is None or not self._began:
            return
        state, envoy = self._state, self.component
        others = self._names.children if self._names is not None else ()
        children = (*envoy.children, *others) if self._run.keeps else ()
        exported = envoy.export(starting=True)
        removed = sorted(map(str, self._run.work.removed_at_end))
        parts: dict[str, object] = {"addresses": dict(self._run.status.ports), "removed_at_end": removed}
        if exported is not None and self._run.keeps:
            chosen = self._run.chosen.ports if self._run.chosen is not None else {}
            parts |= {"envoy": exported, "started_as": self.started_as, "ports": chosen}
        programs = {"envoy": str(self.binary), "coredns": str(self._names.program) if self._names else ""}
        self._noted += 1
        number, loop = self._noted, asyncio.get_running_loop()

        def look() -> None:
            loop.call_soon_threadsafe(noted, records(children, programs))

        def noted(found: list[ChildRecord]) -> None:
            # One thread can overtake another: only the newest counts.
            if number == self._noted:
                state.note(found, parts)

        loop.run_in_executor(None, look)

    def _changed(self, report: ChildReport) -> None:
        run = self._run
        if report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}:
            self.serves(True)
        elif report.pid is None:
            self.serves(False)
        run.status.note_child(report)
        if report.state in {ChildState.EXITED, ChildState.BACKOFF} and run.status.phase is Phase.READY:
            run.status.set_not_ready("envoy", report.last_exit)
            run.status.move(Phase.STARTING, report.last_exit)
        elif report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}:
            run.status.set_not_ready("envoy", "")
            run.settle()
        self.note()

    def _reason(self, reason: str) -> None:
        if reason:
            self._run.status.set_not_ready("envoy", reason)

    def _silent(self, reason: str) -> None:
        run = self._run
        if run.status.phase not in {Phase.STARTING, Phase.READY}:
            # One that drains says so.
            return
        if not reason:
            log.info("Envoy answers again")
            # One that is still to be adopted is READY when that is done.
            if self.component is not None and self.component.is_up:
                run.status.set_not_ready("envoy", "")
                run.settle()
            return
        run.status.set_not_ready("envoy", reason)
        run.status.forget_ready()
        if run.status.phase is Phase.READY:
            run.status.move(Phase.STARTING, reason)

    def _started(self, epoch: int, pid: int) -> None:
        self._epochs[pid] = epoch
        self._began = True
        for child in self.component.children if self.component is not None else ():
            if child.pid == pid:
                child.set_log_fields(epoch=epoch)
        if (relaying := self._configuration.relaying) is not None:
            relaying.relay.envoy_started(epoch, pid)
        self.note()

    def _live(self, epoch: int) -> None:
        self._run.status.facts["epoch"] = epoch
        self._following = asyncio.ensure_future(self._run.levels.follow())
        if (relaying := self._configuration.relaying) is not None:
            relaying.relay.envoy_live(epoch)
        self.note()

    def _ended(self, epoch: int, pid: int, expected: bool) -> None:
        self._epochs.pop(pid, None)
        if (relaying := self._configuration.relaying) is not None:
            relaying.relay.envoy_ended(epoch, expected=expected)
        self.note()

    def _no_hot_restart(self, reason: str) -> None:
        self._run.status.set_warning("envoy", f"{reason}; a reload is refused, and a restart costs connections")

    def _hand_over(self, active: bool) -> None:
        if (relaying := self._configuration.relaying) is not None:
            relaying.relay.hold_health(active)
        self.note()
