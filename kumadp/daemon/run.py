"""A run from its first log line to its exit code: what the run loop drives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from kumadp.core.events import PreviousKnown, Requested
from kumadp.core.phases import Phase
from kumadp.daemon.adoption import StateRecorder, previous_in, tidy
from kumadp.daemon.application import NAME as APPLICATION
from kumadp.daemon.chosen_ports import ChosenPorts
from kumadp.daemon.drain import min_drain_time, plan_drain
from kumadp.daemon.loop import RunLoop
from kumadp.daemon.start import Parts
from kumadp.daemon.systemd import SystemdNotifier
from kumadp.envoy.base_id import sweep
from kumadp.errors import ExitCode, KumadpError
from kumadp.host.garbage import keep_present_objects
from kumadp.host.net.socket_paths import relay_socket_path
from kumadp.host.reexec import inherited_sockets, interim_responder
from kumadp.host.socket_names import check_names, remove_stale
from kumadp.host.work_dir import open_work_dir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.core.context import Context
    from kumadp.core.events import Outcome, Request
    from kumadp.core.status import Status
    from kumadp.daemon.drain import Step
    from kumadp.daemon.reload import Reload
    from kumadp.daemon.start import Launch
    from kumadp.envoy.workload_connections import Direction
    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")


async def run_daemon(context: Context, launch: Launch, notes: tuple[str, ...], shown: Mapping[str, str]) -> Outcome:
    """Run a data plane to its end; ``notes`` and the ``shown`` settings are logged first."""
    for note in notes:
        log.warning("%s", note)
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in shown.items()) or "all defaults")
    outcome = await Daemon(context, launch).run()
    level = logging.INFO if outcome.code == 0 else logging.ERROR
    log.log(level, "exit code %d: %s", outcome.code, outcome.why)
    return outcome


class Daemon:
    """The real daemon: what `kumadp.daemon.loop.RunLoop` drives."""

    def __init__(self, context: Context, launch: Launch) -> None:
        self.status: Status = context.status
        self.events = context.events
        self.looks_back = True
        self._context = context
        self._launch = launch
        self._parts = Parts(context, launch, {"reload": self._request_reload, "reexec": self._request_reexec})
        context.parts = self._parts.ordered
        for part in context.parts:
            context.status.add_section(part.status)
        self._chosen: ChosenPorts | None = None
        self._recorder = StateRecorder(context, self._chosen_ports)
        self._systemd = SystemdNotifier(context)
        self._can_reload = False
        self._reload: Reload | None = None
        self._exit = contextlib.ExitStack()
        self._start_cancelled = False
        self._work: Path | None = None

    async def run(self) -> Outcome:
        """Run to the end, the application's too."""
        outcome = await self._parts.application.conclude(await RunLoop(self).run())
        self._systemd.close()
        await self._context.crashes.close(int(outcome.code), outcome.why, self._context.settings.termination_log)
        return outcome

    def is_essential(self, part: str) -> bool:
        """Only Envoy, and the application if there is one."""
        return part in {"envoy", APPLICATION}

    # The start

    async def start(self) -> None:
        """Start everything; raises KumadpError."""
        self._systemd.start()
        try:
            await self._start()
        except asyncio.CancelledError:
            self._start_cancelled = True
            raise

    async def _start(self) -> None:
        context, parts = self._context, self._context.parts
        for part in parts:
            await part.check()
        await self._look_back()
        self._parts.application.begin()
        self._chosen = ChosenPorts(context.settings, standalone=context.standalone, previous=context.previous.ports)
        context.settings, context.resource = self._chosen.settle(context.settings, context.resource)
        await self._parts.plan_ports()
        self._can_reload = True
        for part in parts:
            await part.start()
        for part in parts:
            await part.started()
        self._chosen.close()
        interim_responder.stop()
        for address in inherited_sockets.close_unclaimed():
            log.info("%s is not served any more", address)
        await context.crashes.find_newest()
        keep_present_objects()

    async def _look_back(self) -> None:
        """Open the work directory, and adopt what a kumadp before this one left there or handed over."""
        context, settings, handover = self._context, self._context.settings, self._launch.handover
        if handover is not None:
            from kumadp.daemon.reexec import previous_of

            context.previous = previous_of(handover)
            self._adopt()
            self.status.facts["reexec"] = {"count": context.previous.count}
        work = await asyncio.to_thread(
            open_work_dir,
            context.name,
            settings.work_dir,
            settings.socket_dir,
            settings.dns_config_dir,
            context.environ,
            context.previous.work,
            sweep,
        )
        self._exit.callback(work.close)
        # An adopted Envoy that was ended before its component began has left its files.
        self._exit.callback(sweep, work.path)
        context.use_work_dir(work)
        self._work = work.path
        if handover is None:
            await context.check_state_dir()
            # On the loop: children are watched from here on. The files are small.
            context.previous = previous_in(work.path)
            self._adopt()
        previous = context.previous
        # A stop that came before is handled first: it drains what serves, whatever the present settings are.
        handled = asyncio.get_running_loop().create_future()
        context.post(PreviousKnown(handled))
        await handled
        if context.status.phase is not Phase.DRAINING:
            await self._end_unfit()
        ready = previous.ready and self._parts.envoy.adopted is not None
        context.status.resume(ready=ready, started=previous.started)
        # They have the ports until they have ended.
        await previous.killed_ended()
        await asyncio.to_thread(tidy, work.path, previous.fifos)
        if not context.standalone:
            check_names(work.sockets, context.name, context.mesh)
            # An Envoy that is adopted has its sockets there.
            if self._parts.envoy.adopted is None and work.sockets == work.path:
                await asyncio.to_thread(remove_stale, work.sockets)
        self._recorder.open()

    def _adopt(self) -> None:
        """Have the parts claim what is theirs; the rest is killed."""
        previous = self._context.previous
        for part in self._context.parts:
            part.adopt(previous)
        for child in previous.children:
            child.watch_death(self._context.crashes.note)
        previous.kill_unclaimed()
        if not previous.reexecuted:
            for part in self._context.parts:
                for child in part.children():
                    log.info("%s (pid %d) of an earlier kumadp is adopted", child.name, child.pid)

    async def _end_unfit(self) -> None:
        """End what was left and cannot be adopted by the settings as they are now."""
        context = self._context
        if await self._parts.envoy.end_unfit():
            await asyncio.to_thread(sweep, context.work.path)
            relay_socket_path(context.name, context.work.path, context.environ).unlink(missing_ok=True)
        if not context.settings.dns_enabled:
            await self._parts.dns.end_adopted()

    def _reread(self) -> tuple[Settings, Resource | None]:
        settings, resource = self._launch.reread()
        return self._chosen.settle(settings, resource) if self._chosen is not None else (settings, resource)

    def _chosen_ports(self) -> Mapping[str, int]:
        return self._chosen.ports if self._chosen is not None else {}

    # The end

    async def stop(self, outcome: Outcome) -> None:
        """Leave everything in reverse order, the application first: it may call out until it has ended."""
        context = self._context
        await self._parts.application.stop(outcome)
        await context.stack.leave()
        for part in reversed(context.parts):
            await part.close()
        left = [child for part in context.parts for child in part.children() if not child.ended]
        if self._start_cancelled or outcome.code == ExitCode.OK:
            await asyncio.gather(*(child.stop(context.settings.stop_grace) for child in left))
        elif left and not self._recorder.complete:
            # Starting failed before they were adopted: they serve on, and the next kumadp adopts them by the records.
            await asyncio.to_thread(self._exit.close)
            return
        await self._recorder.forget()
        await asyncio.to_thread(self._exit.close)

    def kill(self) -> None:
        """Kill the children at once; a temporary directory goes too."""
        for part in self._context.parts:
            part.kill()
        if self._work is not None:
            sweep(self._work, killed=True)
        self._exit.close()

    # A reload, a re-execution

    async def reload(self, why: str) -> str:
        """Start a new epoch of Envoy, with settings, Dataplane, bootstrap and Corefile template as they are now."""
        if not self._can_reload:
            raise KumadpError("Envoy has not been started yet")
        if self._reload is None:
            from kumadp.daemon.reload import Reload

            self._reload = Reload(self._context, self._parts, self._reread)
        with self._systemd.reloading():
            for part in self._context.parts:
                await part.before_reload()
            return await self._reload.reload(why)

    def beat(self) -> None:
        """Report to the service manager that the run loop is alive."""
        self._systemd.beat()

    async def reexec(self, why: str) -> str:
        """Become the kumadp that is installed now; does not return when it has."""
        from kumadp.daemon.reexec import Reexecution

        context = self._context
        count = context.previous.count
        self.status.facts["reexec"] = {"count": count}
        if self._parts.envoy.component is None:
            raise KumadpError("Envoy has not been started yet")
        try:
            reexecution = Reexecution(
                context, context.parts, self._launch.handover, self._chosen_ports, self._launch.flush
            )
            await reexecution.replace_program(why)
        except Exception as error:
            self.status.facts["reexec"] = {"count": count, "failed": str(error)}
            raise

    async def _request_reload(self) -> Mapping[str, object]:
        answer = asyncio.get_running_loop().create_future()
        self._context.post(Requested("reload", "kumadp reload", answer))
        return {"said": await answer}

    async def _request_reexec(self) -> Mapping[str, object]:
        count = self._context.previous.count
        self.status.facts["reexec"] = {"count": count}
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(self._note_reexec_failure)
        self._context.post(Requested("reexec", "kumadp reexec", answer))
        return {"count": count}

    def _note_reexec_failure(self, answer: asyncio.Future[str]) -> None:
        if not answer.cancelled() and (error := answer.exception()) is not None:
            self.status.facts["reexec"] = {"count": self._context.previous.count, "failed": str(error)}

    # Signals and a drain

    def takes(self, number: int) -> bool:
        """Return whether a signal is for the application, not for kumadp."""
        return self._parts.application.takes(number)

    async def end_application(self) -> None:
        """End the application."""
        await self._parts.application.end()

    @property
    def serves(self) -> bool:
        """Whether an Envoy runs, started now or by a previous kumadp."""
        return self._parts.envoy.serves

    @property
    def inbound_drained(self) -> bool:
        """Whether inbound counts as drained."""
        return self._parts.envoy.inbound_drained

    def note_inbound_drain(self) -> None:
        """Count inbound as drained from now on."""
        self._parts.envoy.drain.note_inbound()

    async def change_drain(self, what: Request) -> str:
        """Drain while everything keeps running, or end that."""
        return await self._parts.envoy.drain.change(what)

    async def fail_health_checks(self) -> None:
        """Have Envoy fail its health checks."""
        await self._parts.envoy.drain.fail_health_checks()

    async def drain_inbound(self) -> None:
        """Have Envoy drain its inbound listeners and stay."""
        await self._parts.envoy.drain.drain_inbound()

    async def envoy_gone(self) -> None:
        """Return once Envoy has ended."""
        await self._parts.envoy.drain.gone()

    async def idle(self, direction: Direction) -> None:
        """Return once the workload has no connection of that direction through Envoy."""
        await self._parts.envoy.drain.idle(direction)

    def drain_steps(self, failed: bool) -> tuple[Step, ...]:
        """Return what to do before the stop."""
        settings = self._context.settings
        return plan_drain(
            envoy_runs=self.serves,
            inbound_drained=self._parts.envoy.inbound_drained,
            drain_time=settings.drain_time,
            min_drain_time=min_drain_time(settings, self._context.environ),
            pre_drain_delay=settings.pre_drain_delay,
            application=self._parts.application.drained_as(failed=failed),
        )
