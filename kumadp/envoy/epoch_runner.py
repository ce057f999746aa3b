"""Runs the epochs of Envoy: executes the actions of `kumadp.envoy.epochs` and feeds it what happens."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from kumadp.envoy import epochs
from kumadp.envoy.adopted_envoy import EnvoyState
from kumadp.envoy.argv import epoch_argv
from kumadp.envoy.base_id import LOCKED, BaseIdFiles, new_base_id
from kumadp.envoy.epochs import EpochStage, EpochState, ReloadKind, ReloadRequest
from kumadp.envoy.generations import Generations
from kumadp.envoy.reload import ReloadOutcome, ReloadRequests, check, command_of
from kumadp.envoy.retirement import Due, retire
from kumadp.envoy.server_state import ServerInfo, ServerState
from kumadp.envoy.start_time import StartTime
from kumadp.envoy.takeover import Takeover
from kumadp.errors import KumadpError, WorkDirError
from kumadp.process.child import Child
from kumadp.process.restart_policy import ChildState

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from kumadp.envoy.admin import AdminClient
    from kumadp.envoy.adopted_envoy import AdoptedEnvoy
    from kumadp.envoy.options import EnvoyOptions, EpochCallbacks, HotRestart
    from kumadp.envoy.reload import Plan
    from kumadp.process.child import Command
    from kumadp.process.supervisor import Supervisor

log = logging.getLogger("kumadp.envoy")


class EpochRunner:
    """The epochs of one Envoy. ``supervisor`` watches the current one and starts epoch 0 when it has ended."""

    def __init__(self, plan: Plan, options: EnvoyOptions, callbacks: EpochCallbacks, admin: AdminClient) -> None:
        adopted = options.adopted
        self.plan = plan
        self.state = EpochState()
        self.supervisor: Supervisor
        self.hot = options.hot_restart if adopted is None or adopted.state.serial >= 0 else None
        self._callbacks = callbacks
        self._admin = admin
        self._grace = options.stop_grace
        self._previous_plan = plan
        self._base: BaseIdFiles | None = None
        self._requests = ReloadRequests()
        self._new: Child | None = None
        self._retiring: set[Child] = set()
        self._reported: Child | None = None
        self._due = Due(0.0, 0.0)
        self._locked, self._off = "", "hot restart is off"
        self._start = StartTime()
        self._dead_parent: int | None = None
        self._info: ServerInfo | None = None
        self._unproven: ReloadRequest | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_adopt = adopted
        self._generations = Generations(callbacks)
        self._unclean: list[BaseIdFiles] = []
        self._settled = asyncio.Event()

    # Called by the component.

    async def reload(self, why: str, plan: Plan | None, *, allow_cold: bool) -> ReloadOutcome:
        """Replace the running Envoy by one that runs ``plan``; None: the current plan."""
        log.info("reload: %s", why)
        request, outcome = self._requests.add(plan, why, cold=allow_cold)
        self._feed(epochs.ReloadRequested(request))
        return await outcome

    @property
    def is_handing_over(self) -> bool:
        """True while a new epoch comes up."""
        return self.state.stage is EpochStage.HANDOVER

    @property
    def others(self) -> tuple[Child, ...]:
        """The epochs that drain or come up."""
        new = (self._new,) if self._new is not None else ()
        return tuple(child for child in (*self._retiring, *new) if not child.ended)

    async def settled(self) -> None:
        """Return when no hand-over is under way."""
        await self._settled.wait()

    def refuse_reloads(self) -> None:
        """Refuse every later reload, and the one that waits: kumadp is about to stop."""
        if not self.state.stopping:
            self._feed(epochs.Stopping())

    def export(self, *, starting: bool) -> EnvoyState | None:
        """Return what another kumadp needs to adopt Envoy; without ``starting``: None unless SERVING."""
        child, coming = self.supervisor.child, self._new if self.is_handing_over else None
        stages = {EpochStage.SERVING, *((EpochStage.STARTING, EpochStage.HANDOVER) if starting else ())}
        # The fallback for a dead parent would not outlive execve(2), and the current Envoy would abort without it.
        has_fallback = not starting and (self._dead_parent is not None or any(old.ended for old in self._retiring))
        if self.state.stage not in stages or child is None or child.ended or has_fallback:
            return None
        return EnvoyState(
            serial=self._base.serial if self._base is not None else -1,
            epoch=self.state.epoch,
            blind=self.state.blind,
            current=child.pid,
            retiring=next((old.pid for old in self._retiring), self._dead_parent) if self.state.retiring else None,
            locked=self._locked,
            generation=self._generations.newest - (coming is not None),
            retires_at=self._due.latest,
            protocol=self._info.protocol if self._info is not None else "",
            workers=self._info.workers if self._info is not None else 0,
            admin=str(self._admin.address),
            coming=coming.pid if coming is not None else None,
            shutdown=self.hot.parent_shutdown(self._start.blocks) if self.hot is not None else 0.0,
        )

    # Called for the current epoch, by the supervisor through the component.

    async def cold_command(self) -> Command:
        """Return the command that starts epoch 0 on a new base id."""
        command = await self.plan.command()
        await self._admin.move_to(self.plan.admin)
        if self.hot is None or not await self._use_new_base(self.hot):
            self.hot = None
            return command
        return self._command_of(command, 0)

    async def _use_new_base(self, hot: HotRestart) -> bool:
        previous, in_use = self._base, bool(self._retiring)
        try:
            self._base = await new_base_id(hot.directory, previous, in_use=in_use, memory=hot.shared_memory)
            # Also what was learnt of the previous one during the call.
            self._locked, self._info = "", None
        except WorkDirError as error:
            self._off = f"hot restart is off: {error}"
            self._callbacks.on_hot_restart_off(self._off)
            return False
        if previous is not None and in_use:
            self._unclean.append(previous)
        return True

    def on_spawned(self, child: Child) -> bool:
        """Note the supervisor's new child; returns True if it is an adopted one that serves without an admin."""
        self._reported = child
        adopted, self._to_adopt = self._to_adopt, None
        if adopted is None:
            self._feed(epochs.EpochStarted())
            self._began(child)
            return False
        state = adopted.state
        if self.hot is not None:
            self._base = BaseIdFiles(self.hot.directory, state.serial, self.hot.shared_memory)
        self._info = ServerInfo(state.epoch, "LIVE", state.protocol, state.workers) if state.protocol else None
        self._due = Due(state.retires_at, state.retires_at)
        self._locked = state.locked
        if state.coming is not None and self._base is not None:
            self._locked = "" if self._base.unlock() else LOCKED
        self._dead_parent = adopted.dead_parent
        retiring = (adopted.retiring or adopted.dead_parent) is not None
        repair = state.coming is not None and not self._locked
        self._feed(epochs.EpochAdopted(state.epoch, state.blind, retiring, repair))
        self._generations.begin_at(state.generation if adopted.retiring is None else state.generation - 1)
        if adopted.retiring is not None:
            self._retiring.add(adopted.retiring)
            self._began(adopted.retiring)
            self._run(self._retire(adopted.retiring, state.epoch - 1))
        elif self._dead_parent is not None:
            self._run(self._answer_for(adopted))
        self._began(child)
        return state.blind

    def _began(self, child: Child) -> None:
        self._start.began(child.pid)
        self._generations.started(child.pid)

    def on_live(self) -> None:
        """Note that the current epoch serves."""
        if self.supervisor.child is not None:
            self._start.live(self.supervisor.child.pid)
        if self._base is not None:
            self._base.base_id()
        self._generations.live()
        self._feed(epochs.EpochLive(self.state.epoch))

    def on_overdue(self, reason: str) -> None:
        """Note that the current epoch does not serve in time."""
        self._feed(epochs.EpochOverdue(reason))

    def on_ended(self, reason: str) -> None:
        """Note that the current epoch has ended."""
        if self._reported is not None:
            child, self._reported = self._reported, None
            self._generations.ended(child.pid, expected=self.state.planned or self.state.stopping)
            self._feed(epochs.EpochEnded(reason))

    # Actions of the state machine.

    def _feed(self, event: epochs.Event) -> None:
        self.state, actions = epochs.step(self.state, event)
        if self.is_handing_over:
            self._settled.clear()
        else:
            self._settled.set()
        for action in actions:
            self._do(action)

    def _do(self, action: epochs.Action) -> None:
        match action:
            case epochs.CheckReload(request):
                self._run(self._check(request))
            case epochs.SpawnEpoch(epoch, repair):
                self._run(self._bring_up(epoch, repair=repair))
            case epochs.KillNewEpoch():
                self.kill_new()
            case epochs.HandOver():
                self._hand_over()
            case epochs.StartCold():
                self._start_cold()
            case epochs.RevertPlan():
                self.plan = self._previous_plan
            case epochs.KillCurrentEpoch():
                self.supervisor.kill()
            case epochs.GoBlind(reason):
                log.error("Envoy keeps serving without its admin: %s", reason)
                self.supervisor.set_running_blind(f"it serves without its admin: {reason}")
            case epochs.ReportOutcome(request, kind, reason):
                self._report(request, kind, reason)

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a bug in kumadp", exc_info=error)

    async def _check(self, request: ReloadRequest) -> None:
        try:
            locked = self._locked if self.hot is not None else self._off
            if self.hot is not None:
                pid = child.pid if (child := self.supervisor.child) is not None and not self.state.blind else None
                self._info = await ServerState(self._admin, lambda _reason: None).renewed(self._info, pid)
            result = await check(self._requests.plan_of(request, self.plan), self._info, locked)
        except (KumadpError, OSError) as error:
            result = epochs.ReloadChecked(refused=str(error))
        self._feed(result)

    def _start_cold(self) -> None:
        self._previous_plan, self.plan = self.plan, self._requests.plan_of(self.state.request, self.plan)
        self._run(self.supervisor.restart(self._requests.why_of(self.state.request)))

    def _report(self, request: ReloadRequest, kind: ReloadKind, reason: str) -> None:
        if kind is ReloadKind.HOT:
            # Reported once the new epoch's admin is proven private.
            self._unproven = request
        else:
            self._requests.report(request, ReloadOutcome(kind, reason, self.state.epoch))

    async def _bring_up(self, epoch: int, *, repair: bool) -> None:
        plan = self.plan if repair else self._requests.plan_of(self.state.request, self.plan)
        base, takeover = self._base, Takeover(self._admin, self.supervisor.child)
        self._callbacks.on_handover(True)
        try:
            if not repair:
                await takeover.record()
            reason = await self._until_live(takeover, epoch, plan)
            child = self._new
            if not reason and child is not None:
                previous, self.plan = self.plan, plan
                self._generations.live()
                assert self.hot is not None  # noqa: S101
                self._due = takeover.old_due(self.hot.parent_shutdown(self._start.blocks))
                self._start.live(child.pid)
                self._feed(epochs.EpochLive(epoch))
                await self._prove(takeover, child, previous)
                return
            self.kill_new(f"as a new epoch it failed: {reason}")
            self._feed(epochs.EpochOverdue(reason))
            if child is not None:
                await child.wait()
                self._new = None
                self._generations.ended(child.pid, expected=False)
            if base is self._base and base is not None:
                await self._admin.move_to(self.plan.admin)
                unlocked, lost = await asyncio.to_thread(base.unlock), await takeover.lost()
                # By now the old epoch may have ended too, and another one begun on a new base id.
                if base is self._base:
                    self._locked = "" if unlocked else LOCKED
                    self._feed(epochs.EpochFailed(reason, lost, unlocked))
        finally:
            if not self.is_handing_over:
                self._callbacks.on_handover(False)

    async def _until_live(self, takeover: Takeover, epoch: int, plan: Plan) -> str:
        """Start ``epoch`` and wait until it is LIVE; returns why it is not, "" if it is."""
        assert self.hot is not None  # noqa: S101
        try:
            child = self._new = await Child.spawn(self._command_of(await plan.command(), epoch))
        except (KumadpError, OSError) as error:
            return str(error)
        self._began(child)
        await self._admin.move_to(plan.admin)
        return await takeover.until_live(child, epoch, self.hot.deadline, self._callbacks.on_progress)

    async def _prove(self, takeover: Takeover, child: Child, previous: Plan) -> None:
        """Prove that the new epoch's admin is private, then report how the reload ended."""
        missing, exposed = await takeover.prove(child)
        if exposed:
            self.plan = previous
        request, self._unproven = self._unproven, None
        if request is not None:
            kind = ReloadKind.FAILED if exposed else ReloadKind.HOT
            self._requests.report(request, ReloadOutcome(kind, exposed, self.state.epoch, missing=missing))

    def _command_of(self, command: Command, epoch: int) -> Command:
        assert self.hot is not None  # noqa: S101
        assert self._base is not None  # noqa: S101
        workers = self._info.workers if self._info is not None else None
        arguments = self._base.arguments(epoch, self.hot.parent_shutdown(self._start.blocks), workers)
        return command_of(command, epoch_argv(command.argv, arguments), f"{self._base.serial}.{epoch}")

    # The hand-over.

    def _hand_over(self) -> None:
        child, self._new = self._new, None
        assert child is not None  # noqa: S101
        self._locked = ""
        old = self.supervisor.replace_child(child)
        if old is None:
            # It has just ended: the supervisor is about to report that, and the policy starts a new Envoy.
            child.send_signal(signal.SIGKILL)
            return
        self._reported = child
        self._retiring.add(old)
        self._run(self._retire(old, self.state.epoch - 1))

    async def _answer_for(self, adopted: AdoptedEnvoy) -> None:
        """Wait until the fallback has answered for an old epoch that had died, or whose fallback died, before."""
        if (base := self._base) is not None:
            adopted.begin_fallback(lambda: base.sockets.parent)
            await (adopted.fallback or asyncio.sleep(0))
        self._dead_parent = None
        if base is self._base:
            self._feed(epochs.EpochRetired())

    async def _retire(self, child: Child, epoch: int) -> None:
        assert self._base is not None  # noqa: S101
        base = self._base
        self._retiring.add(child)
        due = self._due

        def on_ended(expected: bool) -> None:
            if expected:
                self._retiring.discard(child)
            self._generations.ended(child.pid, expected=expected)

        def parent_socket() -> Path | None:
            runs = self.supervisor.report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}
            return base.parent_socket(epoch) if runs and base is self._base else None

        await retire(child, due, self._grace, on_ended, parent_socket)
        self._retiring.discard(child)
        if base is self._base:
            self._feed(epochs.EpochRetired())
        else:
            await asyncio.to_thread(base.clean)
            self._unclean.remove(base)

    # The end.

    def kill_new(self, why: str = "") -> None:
        """Send SIGKILL to the epoch that comes up; SIGTERM would end the current one too. ``why`` is its fault."""
        if self._new is not None:
            self._new.kill_with_reason(why)

    def kill(self) -> None:
        """Kill every epoch but the current one at once."""
        self.kill_new()
        for child in self._retiring:
            child.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End every epoch but the current one, which has ended; remove the files that they shared."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        self.kill_new()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.stop(self._grace) for child in self.others))
        self._requests.refuse_all("everything stops", self.state.epoch)
        for base in (*self._unclean, self._base):
            if base is not None:
                await asyncio.to_thread(base.clean)
