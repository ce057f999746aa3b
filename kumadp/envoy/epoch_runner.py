"""Does what the rules of epochs ask for: spawns, watches, hands over, retires."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

from kumadp.envoy import epochs
from kumadp.envoy.argv import Epoch, epoch_argv
from kumadp.envoy.base_id import BaseLine, fresh
from kumadp.envoy.epochs import Ask, Kind, Line, Stage
from kumadp.envoy.reload import Asks, EnvoyState, check, command_of
from kumadp.envoy.retirement import retire, take_its_place
from kumadp.envoy.server_state import ServerInfo, Serving
from kumadp.envoy.takeover import Takeover
from kumadp.errors import KumadpError, WorkDirError
from kumadp.process.child import Child
from kumadp.process.policy import ChildState

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from kumadp.envoy.admin import AdminClient
    from kumadp.envoy.reload import Adopted, Hooks, HotRestart, Plan, ReloadOutcome
    from kumadp.process.child import Command
    from kumadp.process.supervise import Supervisor

log = logging.getLogger("kumadp.envoy")


class Generations:
    """The epochs of one Envoy. ``supervisor`` watches the current one and starts epoch 0 when it has ended."""

    def __init__(
        self,
        plan: Plan,
        hot: HotRestart | None,
        hooks: Hooks,
        admin: AdminClient,
        *,
        grace: float,
        adopt: Adopted | None,
    ) -> None:
        self.plan = plan
        self.line = Line()
        self.supervisor: Supervisor
        self.hot = hot if adopt is None or adopt.state.serial >= 0 else None
        self._hooks = hooks
        self._admin = admin
        self._grace = grace
        self._former = plan
        self._base: BaseLine | None = None
        self._asks = Asks()
        self._coming: Child | None = None
        self._retiring: set[Child] = set()
        self._told_of: Child | None = None
        self._retires_at, self._locked, self._off = 0.0, "", "hot restart is off"
        self._lost: int | None = None
        self._info: ServerInfo | None = None
        self._held: Ask | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._adopt = adopt
        self._generation = -1
        self.numbers: dict[int, int] = {}
        self._unclean: list[BaseLine] = []
        self._settled = asyncio.Event()

    # What the component is asked.

    async def reload(self, why: str, plan: Plan | None, *, allow_cold: bool) -> ReloadOutcome:
        """Replace the running Envoy by one of ``plan``; None: of the present one."""
        log.info("reload: %s", why)
        ask, future = self._asks.add(plan, why, cold=allow_cold)
        self._feed(epochs.Asked(ask))
        return await future

    @property
    def hands_over(self) -> bool:
        """Whether a new epoch comes up."""
        return self.line.stage is Stage.HANDOVER

    @property
    def others(self) -> tuple[Child, ...]:
        """The epochs that drain or come up."""
        coming = (self._coming,) if self._coming is not None else ()
        return tuple(child for child in (*self._retiring, *coming) if not child.ended)

    async def settled(self) -> None:
        """Return when no hand-over is under way."""
        await self._settled.wait()

    def leave(self) -> None:
        """Begin no reload any more."""
        if not self.line.leaving:
            self._feed(epochs.Leaving())

    def export(self, *, starting: bool) -> EnvoyState | None:
        """What another kumadp needs to go on; None where no Envoy serves, or starts, or two change places."""
        child = self.supervisor.child
        stages = {Stage.SERVING, Stage.STARTING} if starting else {Stage.SERVING}
        # Who stands in for a dead one would not outlive execve(2), and the current one would die of that.
        stood_in = not starting and (self._lost is not None or any(one.ended for one in self._retiring))
        if self.line.stage not in stages or child is None or child.ended or stood_in:
            return None
        return EnvoyState(
            serial=self._base.serial if self._base is not None else -1,
            epoch=self.line.epoch,
            blind=self.line.blind,
            current=child.pid,
            retiring=next((one.pid for one in self._retiring), self._lost) if self.line.retiring else None,
            locked=self._locked,
            generation=self._generation,
            retires_at=self._retires_at,
            protocol=self._info.protocol if self._info is not None else "",
            workers=self._info.workers if self._info is not None else 0,
            admin=str(self._admin.address),
        )

    # What the supervisor calls for the current epoch.

    async def cold_command(self) -> Command:
        """How to start epoch 0 on a fresh base id."""
        command = await self.plan.command()
        await self._admin.move_to(self.plan.admin)
        if self.hot is None or not await self._fresh_base(self.hot):
            self.hot = None
            return command
        return self._command_of(command, 0)

    async def _fresh_base(self, hot: HotRestart) -> bool:
        former, used = self._base, bool(self._retiring)
        try:
            self._base = await fresh(hot.directory, former, used=used)
            self._locked, self._info = "", None  # also what was found out of the former one meanwhile
        except WorkDirError as error:
            self._off = f"hot restart is off: {error}"
            self._hooks.off(self._off)
            return False
        if former is not None and used:
            self._unclean.append(former)
        return True

    def spawned(self, child: Child) -> bool:
        """The supervisor has a child. Whether it is one that was adopted and serves without an admin."""
        self._told_of = child
        adopt, self._adopt = self._adopt, None
        if adopt is None:
            self._feed(epochs.Started())
            self._began(child)
            return False
        state = adopt.state
        if self.hot is not None:
            self._base = BaseLine(self.hot.directory, state.serial)
        self._info = ServerInfo(state.epoch, "LIVE", state.protocol, state.workers) if state.protocol else None
        self._retires_at = state.retires_at
        self._locked = state.locked
        self._lost = adopt.lost
        self._feed(epochs.Adopted(state.epoch, state.blind, (adopt.retiring or adopt.lost) is not None))
        self._generation = state.generation - 1
        if adopt.retiring is not None:
            self._generation -= 1
            self._began(adopt.retiring)
            self._run(self._retire(adopt.retiring, state.epoch - 1))
        elif self._lost is not None:
            self._run(self._follow(state.epoch - 1))
        self._began(child)
        return state.blind

    def _began(self, child: Child) -> None:
        self._generation += 1
        self.numbers[child.pid] = self._generation
        self._hooks.started(self._generation, child.pid)

    def _over(self, pid: int, *, expected: bool) -> None:
        self._hooks.ended(self.numbers.pop(pid, self._generation), pid, expected)

    def live(self) -> None:
        """The current epoch serves."""
        self._hooks.live(self._generation)
        self._feed(epochs.Live(self.line.epoch))

    def overdue(self, reason: str) -> None:
        """The current epoch does not serve yet."""
        self._feed(epochs.Overdue(reason))

    def ended(self, reason: str) -> None:
        """The current epoch has ended."""
        if self._told_of is not None:
            child, self._told_of = self._told_of, None
            self._over(child.pid, expected=self.line.planned or self.line.leaving)
            self._feed(epochs.Ended(reason))

    # What the rules ask for.

    def _feed(self, event: epochs.Event) -> None:
        self.line, actions = epochs.step(self.line, event)
        if self.hands_over:
            self._settled.clear()
        else:
            self._settled.set()
        for action in actions:
            self._do(action)

    def _do(self, action: epochs.Action) -> None:
        match action:
            case epochs.Check(ask):
                self._run(self._check(ask))
            case epochs.Spawn(epoch, repair):
                self._run(self._bring(epoch, repair=repair))
            case epochs.Kill():
                self.kill_coming()
            case epochs.HandOver():
                self._hand_over()
            case epochs.StartCold():
                self._start_cold()
            case epochs.Revert():
                self.plan = self._former
            case epochs.Crash():
                self.supervisor.kill()
            case epochs.GoBlind(reason):
                log.error("Envoy serves on without its admin: %s", reason)
                self.supervisor.note_blind(f"it serves, but its admin is gone: {reason}")
            case epochs.Answer(ask, kind, reason):
                self._answer(ask, kind, reason)

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a bug in kumadp", exc_info=error)

    async def _check(self, ask: Ask) -> None:
        try:
            locked = self._locked if self.hot is not None else self._off
            if self.hot is not None:
                self._info = (await Serving(self._admin, lambda _reason: None).info()) or self._info
            result = await check(self._asks.plan_of(ask, self.plan), self._info, locked)
        except (KumadpError, OSError) as error:
            result = epochs.Checked(refused=str(error))
        self._feed(result)

    def _start_cold(self) -> None:
        self._former, self.plan = self.plan, self._asks.plan_of(self.line.ask, self.plan)
        self._run(self.supervisor.restart(self._asks.why_of(self.line.ask)))

    def _answer(self, ask: Ask, kind: Kind, reason: str) -> None:
        if kind is Kind.HOT:
            self._held = ask
        else:
            self._asks.tell(ask, kind, reason, self.line.epoch)

    async def _bring(self, epoch: int, *, repair: bool) -> None:
        plan = self.plan if repair else self._asks.plan_of(self.line.ask, self.plan)
        base, takeover = self._base, Takeover(self._admin, self.supervisor.child)
        self._hooks.handover(True)
        try:
            if not repair:
                await takeover.look()
            reason = await self._until_live(takeover, epoch, plan)
            child = self._coming
            if not reason and child is not None:
                former, self.plan = self.plan, plan
                self._hooks.live(self._generation)
                self._feed(epochs.Live(epoch))
                await self._prove(takeover, child, former)
                return
            self.kill_coming(f"as a new epoch it failed: {reason}")
            self._feed(epochs.Overdue(reason))
            if child is not None:
                await child.wait()
                self._coming = None
                self._over(child.pid, expected=False)
            if base is self._base and base is not None:
                await self._admin.move_to(self.plan.admin)
                unlocked, lost = await asyncio.to_thread(base.unlock), await takeover.lost()
                # Meanwhile the old epoch may have ended too, and another one begun on a base id of its own.
                if base is self._base:
                    self._locked = "" if unlocked else "an epoch that ended too early has locked hot restart"
                    self._feed(epochs.Failed(reason, lost, unlocked))
        finally:
            if not self.hands_over:
                self._hooks.handover(False)

    async def _until_live(self, takeover: Takeover, epoch: int, plan: Plan) -> str:
        """Start ``epoch`` and wait until it has taken over; why it has not, or nothing."""
        assert self.hot is not None  # noqa: S101
        try:
            child = self._coming = await Child.spawn(self._command_of(await plan.command(), epoch))
        except (KumadpError, OSError) as error:
            return str(error)
        self._began(child)
        await self._admin.move_to(plan.admin)
        return await takeover.until_live(child, epoch, self.hot.deadline)

    async def _prove(self, takeover: Takeover, child: Child, former: Plan) -> None:
        """Look closely at an epoch that has taken over, then tell whoever asked for it."""
        missing, exposed = await takeover.prove(child)
        if exposed:
            self.plan = former
        held, self._held = self._held, None
        if held is not None:
            self._asks.tell(held, Kind.FAILED if exposed else Kind.HOT, exposed, self.line.epoch, missing)

    def _command_of(self, command: Command, epoch: int) -> Command:
        assert self.hot is not None  # noqa: S101
        assert self._base is not None  # noqa: S101
        place = Epoch(
            number=epoch,
            base_id=self._base.base_id() if epoch else None,
            base_id_file=self._base.base_id_file,
            sockets=self._base.sockets,
            parent_shutdown=self.hot.parent_shutdown,
            concurrency=self._info.workers if self._info is not None else None,
        )
        return command_of(command, epoch_argv(command.argv, place), f"{self._base.serial}.{epoch}")

    # The change of places.

    def _hand_over(self) -> None:
        child, self._coming = self._coming, None
        assert child is not None  # noqa: S101
        self._locked = ""
        assert self.hot is not None  # noqa: S101
        self._retires_at = time.monotonic() + self.hot.parent_shutdown
        former = self.supervisor.hand_over(child)
        if former is None:
            # It has ended in this very moment: its end is on the way, and the policy starts anew.
            child.send_signal(signal.SIGKILL)
            return
        self._told_of = child
        self._retiring.add(former)
        self._run(self._retire(former, self.line.epoch - 1))

    async def _follow(self, epoch: int) -> None:
        """Stand in for an old ``epoch`` that died before us, or when whoever stood in for it was killed."""
        base = self._base
        if base is not None and (path := base.parent_socket(epoch)) is not None:
            log.warning("the old Envoy of an earlier kumadp is dead, the new one is not to notice")
            await take_its_place(path, self._retires_at)
        self._lost = None
        if base is self._base:
            self._feed(epochs.Retired())

    async def _retire(self, child: Child, epoch: int) -> None:
        assert self._base is not None  # noqa: S101
        base = self._base
        self._retiring.add(child)
        due = self._retires_at

        def ended(expected: bool) -> None:
            if expected:
                self._retiring.discard(child)
            self._over(child.pid, expected=expected)

        def parent_socket() -> Path | None:
            runs = self.supervisor.report.state in {ChildState.RUNNING, ChildState.RUNNING_BLIND}
            return base.parent_socket(epoch) if runs and base is self._base else None

        await retire(child, due, self._grace, ended, parent_socket)
        self._retiring.discard(child)
        if base is self._base:
            self._feed(epochs.Retired())
        else:
            await asyncio.to_thread(base.clean)
            self._unclean.remove(base)

    # The end.

    def kill_coming(self, why: str = "") -> None:
        """SIGKILL for an epoch that comes up, for a fault of its own or none: SIGTERM would end the current one too."""
        if self._coming is not None:
            self._coming.condemn(why)

    def kill(self) -> None:
        """Kill every epoch but the current one at once."""
        self.kill_coming()
        for child in self._retiring:
            child.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """End every epoch but the current one, which has ended; clean what they shared."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        self.kill_coming()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.stop(self._grace) for child in self.others))
        self._asks.refuse_all("everything stops", self.line.epoch)
        for base in (*self._unclean, self._base):
            if base is not None:
                await asyncio.to_thread(base.clean)
