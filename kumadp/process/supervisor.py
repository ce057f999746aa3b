"""Keeps one child running under a restart policy."""

from __future__ import annotations

import asyncio
import collections
import logging
import signal
import time
from typing import TYPE_CHECKING, NoReturn

import msgspec
from msgspec import Struct, field

from kumadp.errors import ChildFailed, HostExhausted, SpawnError
from kumadp.process.child import Child, Command
from kumadp.process.restart_policy import NO_BUDGET, ChildState, GiveUp, RestartPolicy, Restarts, Run, decide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.process.exit_status import ExitStatus

log = logging.getLogger("kumadp.process")

# Pause before the next attempt if the host lacks descriptors or memory (seconds).
_EXHAUSTED_PAUSE = 1.0

# Labels of a metric and keys of the status, so they stay; "asked": a requested restart.
CAUSES = ("exit", "signal", "out of memory", "unknown", "not started", "asked")


class ChildReport(Struct, frozen=True):
    """State of a child; times in seconds since 1970, ``last_exit`` is one sentence or empty.

    ``since`` is when it entered this state, ``started`` when its process started, ``died`` when the last one ended.
    ``causes`` counts the ends before restarts, requested ones too, by `CAUSES`.
    """

    name: str
    state: ChildState
    pid: int | None
    since: float
    restarts: int
    last_exit: str
    reason: str = ""
    started: float | None = None
    died: float | None = None
    causes: Mapping[str, int] = field(default_factory=dict)


class PreviousDeaths(msgspec.Struct, frozen=True):
    """The deaths of a child under the previous program, as in `ChildReport`."""

    restarts: int = 0
    last_exit: str = ""
    died: float | None = None
    causes: dict[str, int] = {}

    @classmethod
    def of(cls, report: ChildReport) -> PreviousDeaths:
        """Return the part of a report that the next program needs."""
        return cls(report.restarts, report.last_exit, report.died, dict(report.causes))


_NO_DEATHS = PreviousDeaths()


class SupervisorOptions(Struct, frozen=True):
    """``permanent_failure`` returns why a restart after this exit and these last lines would be useless, or None.

    ``why_no_restart`` returns why the child is not needed any more, or an empty text. ``on_change`` is called with each
    new report. ``grace`` is the time between TERM and KILL (seconds). ``adopted`` is a child that runs already, and is
    watched instead of spawning a first one; ``previous_deaths`` are added to the counts.
    """

    permanent_failure: Callable[[ExitStatus, list[str]], str | None] = lambda _status, _lines: None
    why_no_restart: Callable[[], str] = lambda: ""
    on_change: Callable[[ChildReport], None] = lambda _report: None
    grace: float = 5.0
    adopted: Child | None = None
    previous_deaths: PreviousDeaths = _NO_DEATHS


_DEFAULTS = SupervisorOptions()


class Supervisor:
    """A component that spawns a child, brings it up, and restarts it when it ends.

    ``bring_up`` returns once the child does its job (it is cancelled if the child ends first) and may raise to end
    everything.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Awaitable[Command]],
        policy: RestartPolicy,
        bring_up: Callable[[Child], Awaitable[None]],
        options: SupervisorOptions = _DEFAULTS,
    ) -> None:
        self.name = name
        # It runs before `run` is called: a stop or a kill before that must reach it.
        self.child = self._adopted = options.adopted
        self._replaced = asyncio.Event()
        self._restart_why = ""
        self._serves_since: float | None = None
        self._command = command
        self._policy = policy
        self._bring_up = bring_up
        self._options = options
        past = options.previous_deaths
        self._restarts = past.restarts
        self._causes = collections.Counter[str](past.causes)
        self._last_exit = past.last_exit
        self._died = past.died
        self.report = ChildReport(
            name,
            ChildState.STOPPED,
            None,
            time.time(),
            past.restarts,
            past.last_exit,
            died=past.died,
            causes=dict(past.causes),
        )

    async def run(self, up: Callable[[], None]) -> None:
        """Keep the child running until cancelled; raises ChildFailed with the reason if it is given up."""
        history = Restarts()
        try:
            if self._adopted is None and self._died is not None and self._policy.budget == 0:
                # The previous program did not restart it either.
                self._give_up(NO_BUDGET)
            while True:
                self._set_state(ChildState.STARTING)
                try:
                    child = await self._spawn()
                except SpawnError as error:
                    history = await self._after_no_start(history, error)
                    continue
                self._set_state(ChildState.STARTING)
                child, status = await self._live(child, up)
                run = self._run_of(child)
                self._last_exit = _sentence(self.name, status, run.ran, child.last_line())
                self._died = time.time()
                self._set_state(ChildState.EXITED)
                if self._restart_why:
                    log.info("%s, as requested: %s", self._last_exit, self._restart_why)
                    self._restart_why = ""
                    self._causes["asked"] += 1
                    continue
                log.warning("%s", self._last_exit)
                history = await self._pause(
                    history, run, cause_of(status), self._options.permanent_failure(status, child.tail(20))
                )
        finally:
            await self._end()

    def kill(self) -> None:
        """Kill the child at once."""
        if self.child is not None:
            self.child.send_signal(signal.SIGKILL)

    def replace_child(self, child: Child) -> Child | None:
        """Watch ``child``, which does its job already, from now on; return the former, which the caller must end.

        Returns None, without a change, if the former child does not do its job any more.
        """
        former = self.child
        if former is None or former.ended or self.report.state not in {ChildState.RUNNING, ChildState.RUNNING_BLIND}:
            return None
        self.child = child
        self._replaced.set()
        self._set_state(ChildState.RUNNING)
        return former

    def set_running_blind(self, why: str) -> None:
        """Report that the child does its job, but its admin is unreachable; a replacement or an end undoes it."""
        if self.report.state is ChildState.RUNNING:
            self._set_state(ChildState.RUNNING_BLIND, why)

    async def restart(self, why: str) -> None:
        """Restart the child at once, without using the restart budget. Returns once it has ended."""
        child = self.child
        if child is None or child.ended:
            return
        self._restart_why = why
        self._set_state(ChildState.STOPPING, why)
        await child.stop(self._options.grace)

    async def _live(self, child: Child, up: Callable[[], None]) -> tuple[Child, ExitStatus]:
        ended = asyncio.ensure_future(child.wait())
        coming = asyncio.ensure_future(self._bring_up(child))
        try:
            await asyncio.wait({ended, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done() and not ended.done():
                coming.result()
                self._set_state(ChildState.RUNNING)
                up()
                child, status = await self._last_of(child)
            else:
                status = await ended
        finally:
            ended.cancel()
            coming.cancel()
            # `await coming` would mistake our own cancellation for that of `coming`, and the child would be restarted.
            await asyncio.wait({coming})
        # A result of the last moment (the admin is exposed) is more important than the exit status.
        if not coming.cancelled():
            coming.result()
        return child, status

    async def _last_of(self, child: Child) -> tuple[Child, ExitStatus]:
        """Return the child that was current when it ended, after any number of replacements."""
        while True:
            ended = asyncio.ensure_future(child.wait())
            replaced = asyncio.ensure_future(self._replaced.wait())
            try:
                await asyncio.wait({ended, replaced}, return_when=asyncio.FIRST_COMPLETED)
                self._replaced.clear()
                if self.child is not None and self.child is not child:
                    child = self.child
                elif ended.done():
                    return child, ended.result()
            finally:
                ended.cancel()
                replaced.cancel()

    async def _spawn(self) -> Child:
        if self._adopted is not None:
            adopted, self._adopted = self._adopted, None
            return adopted
        command = await self._command()
        # The need for it may have ended during the pause before a restart.
        if self.child is not None and (why := self._options.why_no_restart()):
            self._give_up(why)
        self.child = await Child.spawn(command)
        return self.child

    def _run_of(self, child: Child) -> Run:
        """Return how long a child that has just ended ran and served. An adopted one has served since its start."""
        now = asyncio.get_running_loop().time()
        return Run(now - child.started_at, now - self._serves_since if self._serves_since is not None else 0.0)

    async def _after_no_start(self, history: Restarts, error: SpawnError) -> Restarts:
        """Retry if it ran before: the host may lack memory or descriptors, or its program is just being replaced."""
        if self.child is None:
            self._set_state(ChildState.FATAL, str(error))
            raise error
        if isinstance(error, HostExhausted):
            # The budget is not used: a restart would not help.
            log.warning("%s; retrying until it works", error)
            self._set_state(ChildState.BACKOFF, str(error))
            await asyncio.sleep(_EXHAUSTED_PAUSE)
            return history
        self._last_exit = str(error)
        log.warning("%s", error)
        return await self._pause(history, Run(0.0), "not started", None)

    async def _pause(self, history: Restarts, run: Run, cause: str, why: str | None) -> Restarts:
        now = asyncio.get_running_loop().time()
        why = why or self._options.why_no_restart()
        decision = GiveUp(why) if why else decide(history, now, run, self._policy)
        if isinstance(decision, GiveUp):
            self._give_up(decision.reason)
        self._restarts += 1
        self._causes[cause] += 1
        self._set_state(ChildState.BACKOFF, f"restarting in {decision.delay:.2f} s")
        await asyncio.sleep(decision.delay)
        return decision.restarts

    def _give_up(self, reason: str) -> NoReturn:
        self._set_state(ChildState.FATAL, reason)
        raise ChildFailed(f"{self._last_exit}; {reason}")

    async def _end(self) -> None:
        child = self.child
        if child is not None and not child.ended:
            self._set_state(ChildState.STOPPING)
            await child.stop(self._options.grace)
        if self.report.state is not ChildState.FATAL:
            self._set_state(ChildState.STOPPED)

    def _note_service(self, state: ChildState) -> None:
        if state is ChildState.STARTING:
            self._serves_since = None
        elif state is ChildState.RUNNING:
            assert self.child is not None  # noqa: S101
            is_former = self.child is self._options.adopted
            self._serves_since = self.child.started_at if is_former else asyncio.get_running_loop().time()

    def _set_state(self, state: ChildState, reason: str = "") -> None:
        self._note_service(state)
        child, now = self.child if self.child is not None and not self.child.ended else None, time.time()
        pid = child.pid if child is not None else None
        started = now - asyncio.get_running_loop().time() + child.started_at if child is not None else None
        self.report = ChildReport(
            self.name, state, pid, now, self._restarts, self._last_exit, reason, started, self._died, dict(self._causes)
        )
        self._options.on_change(self.report)


def cause_of(status: ExitStatus) -> str:
    """Return the one of `CAUSES` that fits."""
    if status.signal is not None:
        return "out of memory" if status.oom is not None else "signal"
    return "unknown" if status.code is None else "exit"


def _sentence(name: str, status: ExitStatus, ran: float, last: str) -> str:
    return f"{name} ended with {status.describe()} after {ran:.1f} s{f', {last}' if last else ''}"
