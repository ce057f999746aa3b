"""Envoy as a component: started, watched until it serves, proven private, started again."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import httpx

from kumadp.envoy.admin import AdminClient, post
from kumadp.envoy.admin_proof import Doubts, prove_private
from kumadp.envoy.epoch_runner import Generations
from kumadp.envoy.epochs import Kind
from kumadp.envoy.hang_watch import HangWatch
from kumadp.envoy.liveness import Pulse
from kumadp.envoy.reload import Hooks, Plan, ReloadOutcome
from kumadp.envoy.server_state import Serving, configuration_error
from kumadp.errors import AdminExposed, ChildFailed
from kumadp.host.descriptors import is_exhausted
from kumadp.process.policy import ChildState
from kumadp.process.supervise import Past, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.envoy.reload import Adopted, EnvoyState, HotRestart
    from kumadp.process.child import Child, Command, ExitStatus
    from kumadp.process.policy import RestartPolicy
    from kumadp.process.supervise import ChildReport

log = logging.getLogger("kumadp.envoy")

_FIRST_POLL = 0.02
_LONGEST_POLL = 0.25
_NOTHING_TO_FEEL = 0.5
# A second request of this kind is ignored while listeners drain.
_DRAIN_INBOUND = "/drain_listeners?inboundonly&graceful&skip_exit"
# When whoever asked for a cold restart is told that it does not come up (seconds).
COLD_WITHIN = 15.0
# Seconds: until a change is looked at, as more may follow, and until its listeners have to be bound.
DEBOUNCE, SETTLED_WITHIN = 0.5, 30.0
_WATCH, _NO_HOOKS, _NO_PAST = HangWatch(), Hooks(), Past()


class EnvoyComponent:
    """Runs Envoy. ``reason`` hears why it does not serve yet, "" once it does; ``changed`` hears each state.

    ``leaving`` says whether everything is about to stop: an Envoy that ends then is not started again, since a new one
    would take traffic that nobody drains. ``hot`` None: hot restart is off, and the command line is kuma-dp's.
    ``watch`` None: one that hangs is left alone. ``adopt``: one that runs already is gone on with;
    ``past`` is what died before; ``silent`` is called with the reason when a running Envoy does not answer any more,
    with "" when it does again; ``inbound_drained``: its inbound listeners were drained already.
    """

    name = "envoy"

    def __init__(
        self,
        command: Callable[[], Awaitable[Command]],
        admin: AdminAddress,
        policy: RestartPolicy,
        *,
        grace: float,
        dynamic: bool,
        changed: Callable[[ChildReport], None],
        reason: Callable[[str], None],
        leaving: Callable[[], bool] = lambda: False,
        hot: HotRestart | None = None,
        watch: HangWatch | None = _WATCH,
        hooks: Hooks = _NO_HOOKS,
        adopt: Adopted | None = None,
        inbound_drained: bool = False,
        past: Past = _NO_PAST,
        silent: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self.admin = AdminClient(admin)
        self._reason = reason
        self._leaving = leaving
        self._watching = watch
        self._inbound_drained = inbound_drained
        self._failing_health: asyncio.Future[None] | None = None
        self._pulse = Pulse(silent)
        self._adopted = adopt.current if adopt is not None else None
        self._was_live = False
        self._gone = asyncio.Event()
        self._doubts = Doubts()
        self._proofs: set[asyncio.Future[None]] = set()
        self._exposed: AdminExposed | None = None
        self._changed = changed
        self._serving = Serving(self.admin, reason)
        plan = Plan(command, admin, dynamic)
        self._generations = Generations(plan, hot, hooks, self.admin, grace=grace, adopt=adopt)
        self.supervisor = self._generations.supervisor = Supervisor(
            self.name,
            self._generations.cold_command,
            policy,
            self._bring_up,
            permanent=self._permanent,
            unwanted=lambda: "it is not started again, as everything stops" if leaving() else "",
            changed=self._on_change,
            grace=grace,
            first=adopt.current if adopt is not None else None,
            past=past,
        )

    @property
    def runs(self) -> bool:
        """Whether there is a process now, be it one that only finishes its requests."""
        return bool(self.children)

    @property
    def up(self) -> bool:
        """Whether it has come up, and runs."""
        return self.supervisor.report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}

    async def run(self, up: Callable[[], None]) -> None:
        """Keep Envoy running until cancelled; raises ChildFailed or AdminExposed."""
        watch = asyncio.ensure_future(self._watch(self._watching)) if self._watching is not None else None
        keeping, feeling = asyncio.ensure_future(self._keep_private()), asyncio.ensure_future(self._feel())
        try:
            await self.supervisor.run(up)
        except ChildFailed:
            if self._exposed is not None:
                raise self._exposed from None
            if self._leaving():
                # An old epoch still finishes its requests, for as long as the drain allows.
                await self.gone()
            raise
        finally:
            self._gone.set()
            for task in (keeping, feeling, watch, self._failing_health, *self._proofs):
                if task is not None:
                    task.cancel()
            await self._generations.close()
            await self.admin.close()

    async def reload(self, why: str, plan: Plan | None = None, *, allow_cold: bool = False) -> ReloadOutcome:
        """Replace the running Envoy by one that runs ``plan``, None: what runs now, anew.

        With hot restart no connection is lost: the new one takes the listeners, the old one drains. Where that cannot
        be done (hot restart is off or locked, another protocol of it, fewer workers) it is refused with the reason, or
        with ``allow_cold`` done by a restart, which is an outage. At most one reload waits for the one under way, and
        the newest wins. What fails leaves the old Envoy serving.
        """
        if self._inbound_drained or self._leaving():
            what = "inbound is drained, and a new Envoy would take it up again"
            reason = what if self._inbound_drained else "everything stops"
            return ReloadOutcome(Kind.REFUSED, reason, self._generations.line.epoch, 0.0)
        return await self._generations.reload(why, plan, allow_cold=allow_cold)

    def retime(self, drain_time: float, deadline: float) -> None:
        """From the next reload on, other times (seconds, see `HotRestart`)."""
        if self._generations.hot is not None:
            self._generations.hot = replace(self._generations.hot, drain_time=drain_time, deadline=deadline)

    def export(self, *, starting: bool = False) -> EnvoyState | None:
        """What another kumadp needs to go on with this Envoy; None while two change places, and while none serves.

        With ``starting`` one that comes up counts too: it may well serve by the time that somebody goes on with it.
        """
        return self._generations.export(starting=starting)

    def doubt(self, listeners: Collection[str] | None = None) -> None:
        """Prove soon that the admin is private: of these listeners, by name, which are new or changed; None: of all."""
        self._doubts.add(listeners)

    @property
    def hands_over(self) -> bool:
        """Whether a new epoch comes up."""
        return self._generations.hands_over

    @property
    def busy(self) -> bool:
        """Whether a reload that is asked for now would wait."""
        return self._generations.line.busy

    def generation_of(self, pid: int) -> int | None:
        """Which Envoy of all that were started a pid is, None where it is none that runs."""
        return self._generations.numbers.get(pid)

    @property
    def children(self) -> tuple[Child, ...]:
        """Every Envoy that runs: the current one first, then one that drains or comes up."""
        current = self.supervisor.child
        first = (current,) if current is not None and not current.ended else ()
        return (*first, *self._generations.others)

    def kill(self) -> None:
        """Kill every Envoy at once."""
        self._generations.kill()
        self.supervisor.kill()

    async def gone(self) -> None:
        """Return once Envoy has ended, and with it every old epoch that was finishing its requests."""
        await self._gone.wait()
        while others := self._generations.others:
            await asyncio.gather(*(child.wait() for child in others))

    async def fail_health_checks(self) -> None:
        """``POST /healthcheck/fail``; raises OSError when Envoy does not take it.

        Two epochs that change places may need longer than whoever waits for this: it is done after that all the same.
        """
        self._generations.leave()
        if self._failing_health is None:
            self._failing_health = asyncio.ensure_future(self._fail_health_checks())
            # Nobody may wait for it any more.
            self._failing_health.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._failing_health)

    async def _fail_health_checks(self) -> None:
        await self._generations.settled()
        await post(self.admin, "/healthcheck/fail")

    async def drain_inbound(self) -> None:
        """Drain inbound listeners and stay (Kuma 2.8: what SIGUSR2 asks for)."""
        self._inbound_drained = True
        await self._generations.settled()
        await post(self.admin, _DRAIN_INBOUND)

    def _on_change(self, report: ChildReport) -> None:
        if report.pid is None and report.state.name not in {"STARTING"}:
            self._gone.set()
            self._generations.ended(report.last_exit)
            if report.last_exit:
                self._reason(report.last_exit)
        elif report.pid is not None:
            self._gone.clear()
        self._changed(report)
        if report.state is ChildState.RUNNING and self._generations.line.blind:
            self.supervisor.note_blind("it serves, but its admin is gone")

    async def _bring_up(self, child: Child) -> None:
        if self._generations.spawned(child):
            # Its admin is gone: that it runs is all that can be known.
            self._was_live = True
            return
        pause, since = _FIRST_POLL, asyncio.get_running_loop().time()
        while not await self._serving.serves(dynamic=self._generations.plan.dynamic):
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_POLL)
            if asyncio.get_running_loop().time() - since > COLD_WITHIN:
                self._generations.overdue(f"it does not serve after {COLD_WITHIN:g} s and goes on trying")
        self._doubts.take()
        try:
            await prove_private(child.pid, self.admin, later=partial(self._prove_rest, child))
        except AdminExposed as error:
            child.condemn(str(error))
            await child.wait()
            raise
        self._was_live = True
        self._reason("")
        self._generations.live()
        if self._inbound_drained:
            await self._drain_inbound_again()

    async def _drain_inbound_again(self) -> None:
        """An Envoy that was started after the drain has taken inbound up; one that was adopted may not have got it."""
        try:
            await post(self.admin, _DRAIN_INBOUND)
        except OSError as error:
            log.warning("inbound was drained before, and cannot be drained again: %s", error)

    async def _feel(self) -> None:
        """Notice an Envoy that does not answer any more, and that it answers again."""
        while True:
            child, state = self.supervisor.child, self.supervisor.report.state
            if child is None or child.ended or not (self._is_asked(child) or state is ChildState.RUNNING_BLIND):
                self._pulse.forget()
                await asyncio.sleep(_NOTHING_TO_FEEL)
                continue
            # One that changes places may have no admin.
            admin = self.admin.address if self._is_asked(child) and not self.hands_over else None
            await asyncio.sleep(await self._pulse.feel(child.pid, admin))

    def _is_asked(self, child: Child) -> bool:
        """Whether it has served and should answer: it runs, or ran before and is to be adopted."""
        state = self.supervisor.report.state
        return state is ChildState.RUNNING or (state is ChildState.STARTING and child is self._adopted)

    async def _watch(self, watch: HangWatch) -> None:
        """Kill an Envoy that hangs; the restart policy does the rest."""
        while True:
            child = self.supervisor.child
            if child is None or child.ended or not self._is_asked(child):
                await asyncio.sleep(watch.interval)
                continue
            hangs = await watch.hangs(child.pid, self._answers)
            # Who is about to change places, or is blind, has no admin that could answer.
            is_current = child is self.supervisor.child and self._is_asked(child)
            if hangs and is_current and not self.hands_over:
                why = f"no answer from its admin and no CPU used for {watch.limit:g} s"
                log.error("Envoy hangs: %s; it is killed", why)
                child.condemn(f"it hung: {why}")
                await child.wait()
            elif not hangs:
                # It is gone, or cannot be watched here; its end is seen elsewhere.
                await asyncio.sleep(watch.interval)

    async def _keep_private(self) -> None:
        """Repeat the proof whenever it is in doubt; an Envoy that fails it is killed, and everything ends."""
        while True:
            await self._doubts.wait()
            await asyncio.sleep(DEBOUNCE)
            child, state = self.supervisor.child, self.supervisor.report.state
            if state is ChildState.RUNNING_BLIND:
                # Without an admin there is nothing to reach.
                self._doubts.take()
            if child is None or child.ended or state is not ChildState.RUNNING or self.hands_over:
                # One that comes up is proved as a whole; one that goes on after a failed hand-over is proved here.
                continue
            names = self._doubts.take()
            await self._serving.settled(SETTLED_WITHIN)
            places = None if names is None else await self._serving.places(names)
            try:
                await prove_private(child.pid, self.admin, places)
            except AdminExposed as error:
                await self._end_exposed(child, error)

    def _prove_rest(self, child: Child, rest: asyncio.Future[None]) -> None:
        """Wait in the background for the end of a proof, while the start goes on."""

        async def prove() -> None:
            try:
                await rest
            except AdminExposed as error:
                await self._end_exposed(child, error)
            except OSError:
                # No descriptors were left to ask with.
                self._doubts.add(None)

        self._proofs = {one for one in self._proofs if not one.done()} | {asyncio.ensure_future(prove())}

    async def _end_exposed(self, child: Child, error: AdminExposed) -> None:
        self._exposed = error
        child.condemn(str(error))
        await child.wait()

    async def _answers(self) -> bool:
        try:
            await self.admin.get("/ready")
        except httpx.HTTPError as error:
            # Without free descriptors no request was sent.
            return is_exhausted(error)
        return True

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._exposed is not None:
            return str(self._exposed)
        if self._was_live or status.code in {None, 0}:
            return None
        why = configuration_error(lines)
        return f"its configuration is wrong: {why}" if why else None
