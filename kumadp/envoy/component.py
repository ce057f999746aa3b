"""Envoy as a component: started, watched until it serves, its admin proven private, restarted after a crash."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kumadp.envoy.admin import AdminClient, AdminUnreachable, post
from kumadp.envoy.admin_proof import PendingProof, prove_private
from kumadp.envoy.epoch_runner import EpochRunner
from kumadp.envoy.epochs import ReloadKind
from kumadp.envoy.liveness import LivenessCheck
from kumadp.envoy.reload import Plan, ReloadOutcome
from kumadp.envoy.server_state import ServerState, configuration_error
from kumadp.envoy.serving_watch import ServingWatch
from kumadp.errors import AdminExposed, ChildFailed
from kumadp.host.descriptors import is_exhausted
from kumadp.process.progress import ProgressWatch
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import Supervisor, SupervisorOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kumadp.envoy.adopted_envoy import EnvoyState
    from kumadp.envoy.hang_watch import HangWatch
    from kumadp.envoy.options import EnvoyCallbacks, EnvoyOptions
    from kumadp.process.child import Child
    from kumadp.process.exit_status import ExitStatus
    from kumadp.process.supervisor import ChildReport

log = logging.getLogger("kumadp.envoy")

# Pause while there is no Envoy whose liveness could be checked (seconds).
_NO_ENVOY_PAUSE = 0.5
_FAIL_HEALTH_CHECKS = "/healthcheck/fail"
# A second request of this kind is ignored while listeners drain.
_DRAIN_INBOUND = "/drain_listeners?inboundonly&graceful&skip_exit"
_DRAINED = {
    "inbound": "inbound is drained, and a new Envoy would accept connections again (kumadp drain --undo does that)",
    "all": "it is drained, and a new Envoy would be sent requests again (kumadp drain --undo ends that)",
}
# Seconds without progress after which a cold restart that does not serve yet is reported as failed.
COLD_IDLE = 15.0
# Seconds: until a change is checked, as more may follow, and until its listeners have to be bound.
DEBOUNCE, SETTLED_WITHIN = 0.5, 30.0


class EnvoyComponent:
    """Runs and watches Envoy: starts it with ``plan``, restarts it after a crash, reloads it with new epochs."""

    name = "envoy"

    def __init__(self, plan: Plan, options: EnvoyOptions, callbacks: EnvoyCallbacks) -> None:
        self.admin = AdminClient(plan.admin)
        self._callbacks = callbacks
        self._on_progress = callbacks.epochs.on_progress
        self._hang_watch = options.hang_watch
        self._drained = options.drained
        self._failing_health: asyncio.Future[None] | None = None
        self._liveness = LivenessCheck(callbacks.on_unresponsive)
        adopted = options.adopted
        self._adopted = adopted.current if adopted is not None else None
        self._was_live = False
        self._ended = asyncio.Event()
        self._pending_proof = PendingProof()
        self._proofs: set[asyncio.Future[None]] = set()
        self._exposed: AdminExposed | None = None
        self._server = ServerState(self.admin, callbacks.on_not_ready)
        self._serving = ServingWatch()
        self._runner = EpochRunner(plan, options, callbacks.epochs, self.admin)
        self.supervisor = self._runner.supervisor = Supervisor(
            self.name,
            self._runner.cold_command,
            options.policy,
            self._bring_up,
            SupervisorOptions(
                permanent_failure=self._permanent,
                why_no_restart=lambda: "it is not restarted, as kumadp is stopping" if callbacks.is_stopping() else "",
                on_change=self._on_change,
                grace=options.stop_grace,
                adopted=self._adopted,
                previous_deaths=options.past,
            ),
        )

    @property
    def is_running(self) -> bool:
        """True if there is a process now, including an old epoch that only finishes its requests."""
        return bool(self.children)

    @property
    def is_up(self) -> bool:
        """True if it has come up and still runs."""
        return self.supervisor.report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}

    async def run(self, up: Callable[[], None]) -> None:
        """Keep Envoy running until cancelled; raises ChildFailed or AdminExposed."""
        watch = asyncio.ensure_future(self._watch_for_hang(self._hang_watch)) if self._hang_watch is not None else None
        recheck, liveness = asyncio.ensure_future(self._recheck()), asyncio.ensure_future(self._watch_liveness())
        try:
            await self.supervisor.run(up)
        except ChildFailed:
            if self._exposed is not None:
                raise self._exposed from None
            if self._callbacks.is_stopping():
                # An old epoch still finishes its requests, for as long as the drain allows.
                await self.wait_ended()
            raise
        finally:
            self._ended.set()
            for task in (recheck, liveness, watch, self._failing_health, *self._proofs):
                if task is not None:
                    task.cancel()
            await self._runner.close()
            await self.admin.close()

    async def reload(self, why: str, plan: Plan | None = None, *, allow_cold: bool = False) -> ReloadOutcome:
        """Replace the running Envoy by one that runs ``plan``; None restarts what runs now.

        With hot restart no connection is lost: the new Envoy takes the listeners, the old one drains. If that cannot be
        done (hot restart is off or locked, another protocol of it, fewer workers) the reload is refused with the
        reason, or with ``allow_cold`` done by a restart, which is an outage. At most one reload waits for the one under
        way, and the newest wins. If any step fails, the old Envoy keeps serving.
        """
        if self._drained or self._callbacks.is_stopping():
            reason = _DRAINED[self._drained] if self._drained else "everything stops"
            return ReloadOutcome(ReloadKind.REFUSED, reason, self._runner.state.epoch, 0.0)
        return await self._runner.reload(why, plan, allow_cold=allow_cold)

    def set_reload_times(self, drain_time: float, deadline: float) -> None:
        """Use other times from the next reload on (seconds, see `HotRestart`)."""
        if self._runner.hot is not None:
            self._runner.hot = replace(self._runner.hot, drain_time=drain_time, deadline=deadline)

    def export(self, *, starting: bool = False) -> EnvoyState | None:
        """Return what another kumadp needs to adopt this Envoy; None during a hand-over and while none serves.

        With ``starting`` one that comes up counts too: it may well serve by the time that it is adopted.
        """
        return self._runner.export(starting=starting)

    def recheck_admin(self, listeners: Collection[str] | None = None) -> None:
        """Prove soon that the admin is private: on these new or changed listeners, by name; None: on all."""
        self._pending_proof.add(listeners)

    def on_accepted(self) -> None:
        """Look at once whether Envoy serves: it has accepted a configuration."""
        self._serving.event()

    @property
    def is_handing_over(self) -> bool:
        """True while a new epoch comes up."""
        return self._runner.is_handing_over

    @property
    def is_busy(self) -> bool:
        """True if a reload that is requested now would wait."""
        return self._runner.state.is_busy

    @property
    def children(self) -> tuple[Child, ...]:
        """Every Envoy that runs: the current one first, then one that drains or comes up."""
        current = self.supervisor.child
        first = (current,) if current is not None and not current.ended else ()
        return (*first, *self._runner.others)

    def kill(self) -> None:
        """Kill every Envoy at once."""
        self._runner.kill()
        self.supervisor.kill()

    async def wait_ended(self) -> None:
        """Return once Envoy has ended, and with it every old epoch that was finishing its requests."""
        await self._ended.wait()
        while others := self._runner.others:
            await asyncio.gather(*(child.wait() for child in others))

    async def fail_health_checks(self) -> None:
        """Send ``POST /healthcheck/fail``; raises OSError if Envoy does not accept it.

        A hand-over may take longer than the caller waits: the request is sent after it all the same.
        """
        self._runner.refuse_reloads()
        if self._failing_health is None:
            self._failing_health = asyncio.ensure_future(self._fail_health_checks())
            # Nobody may wait for it any more.
            self._failing_health.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._failing_health)

    async def _fail_health_checks(self) -> None:
        await self._runner.settled()
        await post(self.admin, _FAIL_HEALTH_CHECKS)

    async def drain_inbound(self) -> None:
        """Drain the inbound listeners and keep running (Kuma 2.8: what SIGUSR2 requests); raises OSError."""
        self._drained = "inbound"
        await self._runner.settled()
        await post(self.admin, _DRAIN_INBOUND)

    async def accept_inbound(self) -> ReloadOutcome:
        """Replace an Envoy whose inbound has drained by one with open listeners: by hot restart alone."""
        self._drained = ""
        outcome = await self.reload("inbound is to be accepted again")
        if not outcome.serves:
            self._drained = "inbound"
        return outcome

    async def keep_failing_health_checks(self) -> None:
        """Fail the health checks of this Envoy and those that follow it, while all run; raises OSError."""
        self._drained = "all"
        await self._runner.settled()
        await post(self.admin, _FAIL_HEALTH_CHECKS)

    async def pass_health_checks(self) -> None:
        """Undo `keep_failing_health_checks`; raises OSError."""
        await self._runner.settled()
        await post(self.admin, "/healthcheck/ok")
        self._drained = ""

    def _on_change(self, report: ChildReport) -> None:
        if report.pid is None and report.state is not ChildState.STARTING:
            self._ended.set()
            self._runner.on_ended(report.last_exit)
            if report.last_exit:
                self._callbacks.on_not_ready(report.last_exit)
        elif report.pid is not None:
            self._ended.clear()
        self._callbacks.on_change(report)
        if report.state is ChildState.RUNNING and self._runner.state.blind:
            self.supervisor.set_running_blind("it serves without its admin")

    async def _bring_up(self, child: Child) -> None:
        if self._runner.on_spawned(child):
            # It has lost its admin: that it runs is all that can be checked.
            self._was_live = True
            return
        watch = asyncio.ensure_future(self._watch_progress(child.pid))
        try:
            await self._serving.until(self._serves)
        finally:
            watch.cancel()
        self._pending_proof.take()
        try:
            await prove_private(child.pid, self.admin, later=partial(self._prove_rest, child))
        except AdminExposed as error:
            child.kill_with_reason(str(error))
            await child.wait()
            raise
        self._was_live = True
        self._callbacks.on_not_ready("")
        self._runner.on_live()
        if self._drained:
            await self._drain_again(_FAIL_HEALTH_CHECKS if self._drained == "all" else _DRAIN_INBOUND)

    async def _serves(self) -> bool:
        return await self._server.serves(dynamic=self._runner.plan.dynamic, drained=self._drained == "all")

    async def _watch_progress(self, pid: int) -> None:
        """Report a cold restart that makes no progress as failed; it is waited for all the same."""
        watch = ProgressWatch(COLD_IDLE, self._server.counts, self._on_progress)
        self._runner.on_overdue(f"it does not serve: {await watch.overdue(pid)}; still waiting for it")

    async def _drain_again(self, path: str) -> None:
        """Repeat the drain: an Envoy started since accepts requests; an adopted one may not have received it."""
        try:
            await post(self.admin, path)
        except OSError as error:
            log.warning("Envoy was drained before; draining it again failed: %s", error)

    async def _watch_liveness(self) -> None:
        """Report an Envoy that stops answering, and that it answers again."""
        while True:
            child, state = self.supervisor.child, self.supervisor.report.state
            if child is None or child.ended or not (self._should_answer(child) or state is ChildState.RUNNING_BLIND):
                self._liveness.reset()
                await asyncio.sleep(_NO_ENVOY_PAUSE)
                continue
            # During a hand-over it may have no admin.
            admin = self.admin.address if self._should_answer(child) and not self.is_handing_over else None
            await asyncio.sleep(await self._liveness.check(child.pid, admin))

    def _should_answer(self, child: Child) -> bool:
        """Return whether it has served and should answer: it runs, or ran before and is to be adopted."""
        state = self.supervisor.report.state
        return state is ChildState.RUNNING or (state is ChildState.STARTING and child is self._adopted)

    async def _watch_for_hang(self, watch: HangWatch) -> None:
        """Kill an Envoy that hangs, from its start on; the restart policy does the rest."""
        watched = {ChildState.STARTING, ChildState.RUNNING}
        while True:
            child = self.supervisor.child
            if child is None or child.ended or self.supervisor.report.state not in watched:
                await asyncio.sleep(watch.interval)
                continue
            hangs = await watch.hangs(child.pid, self._answers)
            # During a hand-over, or blind, it has no admin that could answer.
            is_current = child is self.supervisor.child and self.supervisor.report.state in watched
            if hangs and is_current and not self.is_handing_over:
                why = f"no answer from its admin and no CPU used for {watch.limit:g} s"
                log.error("Envoy hangs: %s; killing it", why)
                child.kill_with_reason(f"it hung: {why}")
                await child.wait()
            elif not hangs:
                # It has ended, or cannot be watched here; the supervisor sees its end.
                await asyncio.sleep(watch.interval)

    async def _recheck(self) -> None:
        """Repeat the proof after each request for it; an Envoy that fails it is killed, and everything ends."""
        while True:
            await self._pending_proof.wait()
            await asyncio.sleep(DEBOUNCE)
            child, state = self.supervisor.child, self.supervisor.report.state
            if state is ChildState.RUNNING_BLIND:
                # Without an admin there is nothing to reach.
                self._pending_proof.take()
            if child is None or child.ended or state is not ChildState.RUNNING or self.is_handing_over:
                # One that comes up is proved as a whole; one that serves on after a failed hand-over is proved here.
                continue
            names = self._pending_proof.take()
            await self._server.settled(SETTLED_WITHIN)
            only = None if names is None else await self._server.listener_addresses(names)
            try:
                await prove_private(child.pid, self.admin, only)
            except AdminExposed as error:
                await self._end_exposed(child, error)

    def _prove_rest(self, child: Child, rest: asyncio.Future[None]) -> None:
        """Wait in the background for the end of a proof, while the start proceeds."""

        async def prove() -> None:
            try:
                await rest
            except AdminExposed as error:
                await self._end_exposed(child, error)
            except OSError:
                # No descriptors were left for the requests.
                self._pending_proof.add(None)

        self._proofs = {proof for proof in self._proofs if not proof.done()} | {asyncio.ensure_future(prove())}

    async def _end_exposed(self, child: Child, error: AdminExposed) -> None:
        self._exposed = error
        child.kill_with_reason(str(error))
        await child.wait()

    async def _answers(self) -> bool:
        try:
            await self.admin.get("/ready")
        except AdminUnreachable as error:
            # Without free descriptors no request was sent.
            return is_exhausted(error)
        return True

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        """Return why a restart would be useless, None if it may help."""
        if self._exposed is not None:
            return str(self._exposed)
        if self._was_live or status.code in {None, 0}:
            return None
        why = configuration_error(lines)
        return f"its configuration is wrong: {why}" if why else None
